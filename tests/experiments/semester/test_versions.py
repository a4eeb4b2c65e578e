"""The package versions of a check: how they are resolved and locked, and errors of their installation."""

import sys
from datetime import date
from importlib.metadata import distributions

import pytest
from packaging.requirements import Requirement

from experiments.semester import versions
from experiments.semester.versions import (
    CONFLICTING_PACKAGES,
    NotInstalled,
    format_lock_file,
    newest_lock,
    python_of,
    versions_in,
)

TODAY = date(2026, 11, 28)
RESOLVED = """numpy==2.4.6 \\
    --hash=sha256:aa
nvidia-ml-py==13.615.71 \\
    --hash=sha256:ff
nvidia-nccl-cu13==2.30.7 \\
    --hash=sha256:bb
torch==2.15.0 \\
    --hash=sha256:cc \\
    --hash=sha256:dd
triton==3.9.0 \\
    --hash=sha256:ee
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def test_the_separately_installed_packages_are_those_that_conflict_with_the_current_list():
    """This environment has the current list; it was installed without the requirements that the packages declare."""
    installed = {one.name.lower().replace("_", "-"): one for one in distributions() if one.name}
    wrong = set()
    for name, one in installed.items():
        for requirement in map(Requirement, one.requires or ()):
            other = installed.get(requirement.name.lower().replace("_", "-"))
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and other and not requirement.specifier.contains(other.version, prereleases=True):
                wrong.add(name)
    assert wrong == {*CONFLICTING_PACKAGES}


def test_a_resolved_list_has_every_package_of_the_current_list_but_not_pytorch_and_its_dependencies():
    text = format_lock_file(RESOLVED, ["numpy", "nvidia-ml-py", "torch"])
    kept = "numpy==2.4.6 \\\n    --hash=sha256:aa\nnvidia-ml-py==13.615.71 \\\n    --hash=sha256:ff\n"
    assert text == f"# torch==2.15.0\n{kept}"


def test_package_names_are_resolved_to_the_newest_versions_once_a_day(monkeypatch, cache):
    asked = []

    def output(command, text=""):
        asked.append((command, text.split()))
        return RESOLVED

    monkeypatch.setattr(versions, "_run_command", output)
    (cache / "newest-2026-11-21.txt").write_text("of last week")
    first = newest_lock(TODAY)
    assert newest_lock(TODAY) == first
    (together, names), (alone, apart) = asked
    assert "--no-deps" in alone
    assert "--no-deps" not in together
    assert apart == [*CONFLICTING_PACKAGES]
    assert {"torch", "transformers", "peft"} <= {*names}
    assert not [name for name in names if "=" in name]
    assert [path.name for path in cache.glob("newest-*")] == [first.name]


def test_a_resumed_check_uses_the_same_versions(monkeypatch, tmp_path):
    monkeypatch.setattr(versions, "_create_environment", lambda prefix, locks: locks[0].read_text())
    monkeypatch.setattr(versions, "_run_command", lambda *_: RESOLVED)
    before = python_of("newest", tmp_path, TODAY)
    monkeypatch.setattr(versions, "_run_command", lambda *_: RESOLVED.replace("2.4.6", "2.5.0"))
    assert python_of("newest", tmp_path, date(2026, 11, 29)) == before


def test_a_list_of_packages_that_cannot_be_resolved_is_reported_with_the_message_of_uv(monkeypatch, tmp_path):
    """The real uv runs, without a network."""
    (tmp_path / "current.txt").write_text("no-such-package==1.0\n")
    monkeypatch.setattr(versions, "packaged_folder", lambda _: tmp_path)
    monkeypatch.setenv("UV_OFFLINE", "1")
    with pytest.raises(NotInstalled, match="no-such-package"):
        python_of("newest", tmp_path, TODAY)


def test_an_environment_that_cannot_be_created_is_reported(monkeypatch, tmp_path):
    """Fake: the script that creates environments, which fails like the one in containers/."""
    (tmp_path / "environment.py").write_text("import sys; sys.exit('a hash differs\\n3 of 4: packages: exit code 1')")
    (tmp_path / "newest.txt").write_text("numpy==2.4.6\n")
    monkeypatch.setattr(versions, "packaged_folder", lambda _: tmp_path)
    with pytest.raises(NotInstalled, match="a hash differs 3 of 4: packages: exit code 1"):
        python_of("newest", tmp_path, TODAY)


def test_the_versions_named_current_are_those_of_this_environment(tmp_path):
    python = python_of("current", tmp_path, TODAY)
    assert str(python) == sys.executable
    assert versions_in(python)["torch"]
