"""Bundles of runs: genuine ones are accepted, forged ones rejected with the reason, hostile ones never unpacked."""

import json
import zipfile
from collections import Counter
from itertools import cycle
from pathlib import Path

import pytest

from experiments.bundle import archive
from experiments.bundle.archive import BadBundle, read_bundle, write_bundle
from experiments.bundle.check import check_bundle, reject_copies
from experiments.bundle.consistency import prediction_contradictions, result_contradictions
from experiments.cli.app import main
from experiments.report.archive import write_zip
from experiments.results.run_folder import RunFolder
from experiments.results.schema import RESULTS_FILE, StepCounts
from tests.support.results.evidence import EVIDENCE, RUNS
from tests.support.results.forgeries import FORGERIES, Forger, write_hostile_archive

LAB = "single_gpu_litgpt-a100_80gb"
GENUINE = [run for run in RUNS if (run / RESULTS_FILE).read_text()]
FORGED = 100
MIN_REJECTED = 95


def predictions_for(run: Path):
    stored = EVIDENCE / f"{run.name.partition('-full-')[0]}-without-gpu"
    return RunFolder(stored).predictions() if stored.is_dir() else ()


@pytest.fixture(scope="module")
def genuine_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a stored run with telemetry of each row."""
    return write_bundle(RunFolder(EVIDENCE / f"{LAB}-full-verdict"), tmp_path_factory.mktemp("genuine") / "alice.zip")


@pytest.mark.parametrize("run", GENUINE, ids=lambda run: run.name)
def test_a_genuine_run_is_accepted(run, tmp_path):
    checked = check_bundle(write_bundle(RunFolder(run), tmp_path / "run.zip"), predictions_for(run))
    assert checked.problems == ()
    assert checked.evaluation is not None


def test_a_changed_peak_of_a_row_on_the_cpu_contradicts_its_prediction():
    run = EVIDENCE / "slurm_hf_trainer-v100_32gb-full-verdict"
    result = RunFolder(run).results()["neo-inference-cpu"]
    (prediction,) = (one for one in predictions_for(run) if one.spec.row == "neo-inference-cpu")
    assert not list(prediction_contradictions(result, prediction))
    higher = result.model_copy(update={"memory": result.memory.model_copy(update={"peak_gib": 3.0})})
    assert list(prediction_contradictions(higher, prediction)) == ["peak 3.00 GiB, predicted 2.62 GiB"]


def test_a_result_from_a_shared_gpu_is_rejected_if_it_states_a_speed():
    result = next(one for one in RunFolder(EVIDENCE / f"{LAB}-full-verdict").results().values() if one.speed)
    speed, device = result.speed, result.device.model_copy(update={"shared": True})
    assert speed
    counts = StepCounts(**{name: getattr(speed, name) for name in StepCounts.model_fields})
    shared = result.model_copy(update={"device": device, "speed": None, "steps": counts})
    assert not list(result_contradictions(shared))
    more = counts.model_copy(update={"micro_steps": speed.micro_steps + 1})
    assert [text.rpartition(", ")[2] for text in result_contradictions(shared.model_copy(update={"steps": more}))] == [
        f"{len(result.losses)} losses do not agree"
    ]
    timed = shared.model_copy(update={"speed": speed, "steps": None})
    assert list(result_contradictions(timed)) == ["the GPU was shared, but the speed is stated"]


def test_genuine_runs_are_not_mistaken_for_copies_of_each_other(tmp_path):
    bundles = [write_bundle(RunFolder(run), tmp_path / f"{run.name}.zip") for run in GENUINE]
    assert [one.problems for one in reject_copies([check_bundle(path) for path in bundles], {})] == [()] * len(GENUINE)


def test_of_100_forged_bundles_at_least_95_are_rejected(genuine_bundle, tmp_path):
    predictions = predictions_for(EVIDENCE / f"{LAB}-full-verdict")
    trained = [row for row, result in Forger(genuine_bundle).results.items() if result["speed"]]
    alice = check_bundle(genuine_bundle, predictions)
    passed: Counter[str] = Counter()
    for number, (forge, row) in zip(range(FORGED), cycle_of(trained), strict=False):
        forger = Forger(genuine_bundle)
        forge(forger, row)
        forged = check_bundle(forger.write(tmp_path / f"{number}.zip"), predictions)
        _, checked = reject_copies([alice, forged], {}) if forge.__name__ == "copy_run" else (alice, forged)
        if checked.is_accepted:
            passed[f"{forge.__name__} {row}"] += 1
        elif "copied" not in checked.problems[0]:
            assert any(row in problem for problem in checked.problems), checked.problems
    assert FORGED - passed.total() >= MIN_REJECTED, passed


def cycle_of(rows):
    """Yield pairs of a forgery and a row: every forgery in turn, each time with the next row."""
    return zip(cycle(FORGERIES), (row for row in cycle(rows)), strict=False)


def test_a_bundle_with_an_edited_file_is_rejected_by_its_checksum(genuine_bundle, tmp_path):
    contents = read_bundle(genuine_bundle)
    with zipfile.ZipFile(tmp_path / "edited.zip", "w") as edited:
        for name, content in contents.items():
            edited.writestr(name, content.replace(b"oom", b"OOM"))
    with pytest.raises(BadBundle, match=r"results\.jsonl.* does not match SHA256SUMS"):
        read_bundle(tmp_path / "edited.zip")


def test_a_row_that_is_not_in_the_bundle_gets_no_points(genuine_bundle, tmp_path, capsys):
    code = main(
        [
            "grade",
            str(genuine_bundle),
            "--row",
            "13b-lora",
            "--row",
            "nothing",
            "--gradescope",
            str(tmp_path / "r.json"),
        ]
    )
    answer = json.loads((tmp_path / "r.json").read_text())
    assert code == 0
    assert answer["score"] == 1
    assert [(test["name"], test["score"], test["output"]) for test in answer["tests"][1:]] == [
        ("13b-lora", 1, "has a result"),
        ("nothing", 0, "no result"),
    ]
    assert "alice.zip: accepted, 1 of 2 points" in capsys.readouterr().out


def test_a_run_for_another_card_than_the_requested_one_is_rejected(genuine_bundle):
    assert check_bundle(genuine_bundle, card="h100_94gb").problems == (
        "the run is for a100_80gb; requested: h100_94gb",
    )


def test_a_copy_of_a_known_run_is_rejected(genuine_bundle, capsys):
    assert main(["grade", str(genuine_bundle), "--known-runs", str(EVIDENCE)]) == 1
    assert "copied; exactly the same measurements are in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("/etc/passwd", 0o100644),
        ("../run.json", 0o100644),
        ("telemetry/../run.json", 0o100644),
        ("telemetry/../../x.csv", 0o100644),
        ("telemetry/...csv/x", 0o100644),
        ("..\\run.json", 0o100644),
        ("run.json", 0o120777),
        ("run.json", 0o040755),
        ("run.json", 0o010644),
        ("other.txt", 0o100644),
    ],
)
def test_a_hostile_archive_is_rejected_and_nothing_is_written(name, mode, tmp_path):
    path = write_hostile_archive(tmp_path / "hostile.zip", name, mode=mode)
    assert not check_bundle(path).is_accepted
    with pytest.raises(BadBundle, match=r"does not belong in a bundle|is not a regular file"):
        read_bundle(path)
    assert [one.name for one in tmp_path.iterdir()] == ["hostile.zip"]


def test_a_zip_bomb_is_rejected_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    with pytest.raises(BadBundle, match="too large for a bundle"):
        read_bundle(write_hostile_archive(tmp_path / "bomb.zip", "run.json", bytes(5000)))


def test_an_archive_that_hides_its_size_is_rejected(tmp_path):
    path = write_hostile_archive(tmp_path / "bomb.zip", "run.json", bytes(5000))
    data = path.read_bytes()
    path.write_bytes(data.replace((5000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(BadBundle):
        read_bundle(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"not an archive", b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_not_an_archive_is_rejected(content, tmp_path):
    (tmp_path / "text.zip").write_bytes(content)
    with pytest.raises(BadBundle, match="not a bundle"):
        read_bundle(tmp_path / "text.zip")


def test_a_result_that_is_not_json_is_rejected_with_the_reason(genuine_bundle, tmp_path):
    forger = Forger(genuine_bundle)
    forger.contents["run.json"] = b"{"
    (problem,) = check_bundle(write_zip(tmp_path / "broken.zip", forger.contents)).problems
    assert "run.json: not a run of schema version 1" in problem


def test_a_bundle_contains_no_secret_and_has_the_same_bytes_each_time(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/alice")
    folder = tmp_path / "run"
    folder.mkdir()
    source = EVIDENCE / f"{LAB}-full-verdict"
    run = json.loads((source / "run.json").read_text())
    run["command"] = (
        "testbed run --notify mailto://alice:pass1@mail.edu --data https://u:pass2@hub/x /home/alice/results"
    )
    (folder / "run.json").write_text(json.dumps(run))
    (folder / RESULTS_FILE).write_bytes((source / RESULTS_FILE).read_bytes())
    first, second = (write_bundle(RunFolder(folder), tmp_path / name).read_bytes() for name in ("a.zip", "b.zip"))
    assert first == second
    text = b"".join(read_bundle(tmp_path / "a.zip").values())
    assert not [secret for secret in (b"pass1", b"pass2", b"/home/alice") if secret in text]
    assert b"https://***" in text


def test_a_run_without_results_is_not_bundled(capsys):
    assert main(["bundle", str(EVIDENCE / f"{LAB}-without-gpu")]) == 2
    assert "no row has a result" in capsys.readouterr().err
