"""The package versions that --good and --bad stand for."""

import json
import shutil

import pytest

from experiments.blame import pins as module
from experiments.blame.pins import Pin, pins_of, read_pins
from experiments.errors import InputError
from tests.support.results.evidence import EVIDENCE
from tests.support.results.fake_index import wheel

RUN = EVIDENCE / "single_gpu_blip2-h100_94gb-full-verdict"


def test_pins_of_a_lock_file_have_hashes_except_for_pytorch():
    found = pins_of("current", "--bad")
    assert len(found["transformers"].hashes) >= 1
    assert found["torch"].hashes == ()
    assert pins_of("as-taught", "--good")["transformers"].version.startswith("4.")


def test_package_names_are_normalized_and_lines_without_an_exact_version_are_rejected(tmp_path):
    assert read_pins("Py_YAML==6.0\n# comment\n", "a.txt") == {"py-yaml": Pin("6.0")}
    (tmp_path / "loose.txt").write_text("torch>=2\n")
    with pytest.raises(InputError, match=r"'torch>=2' is not an exact version"):
        pins_of(str(tmp_path / "loose.txt"), "--good")
    with pytest.raises(InputError, match="--good nowhere: allowed: current"):
        pins_of("nowhere", "--good")


def test_the_pins_of_a_run_are_its_recorded_versions_and_their_dependencies(tmp_path, monkeypatch):
    index, run = tmp_path / "index", tmp_path / "run"
    index.mkdir()
    wheel(index, "peft", "99.0", needs=["testbed-fake-helper>=2"])
    wheel(index, "testbed_fake_helper", "2.0")
    monkeypatch.setenv("UV_FIND_LINKS", str(index))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    shutil.copytree(RUN, run)
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    known = module.pins_of("current", "--bad")
    for line in lines:
        line["versions"] = {"torch": f"{known['torch'].version}+cu130", "peft": "99.0"}
    (run / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = pins_of(str(run), "--good")
    other = {name: pin.version for name, pin in found.items() if known.get(name) != pin}
    assert other == {"peft": "99.0", "testbed-fake-helper": "2.0"}
