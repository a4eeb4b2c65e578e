"""Fixtures for checks before a semester, whose environments are fakes."""

from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from experiments.cli.app import main
from experiments.semester import check
from tests.support import fake_environment


@pytest.fixture
def semester(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run `testbed semester` with these arguments; return exit code, stdout and stderr.

    Fakes: the environments. Their Python is called in this process, which saves half a second for each part.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "run_logged", run_in_this_process)
    versions = {"as-taught": "2.5.1", "current": "2.13.0", "newest": "2.15.0"}

    def python_of(name: str, *_: object) -> Path:
        return fake_environment.write_python(tmp_path, versions[name])

    monkeypatch.setattr(check, "python_of", python_of)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["semester", fake_environment.SUITE, *words])
        return code, *capsys.readouterr()

    return run


def run_in_this_process(words: Sequence[str], log: Path, *_: object) -> int:
    with log.open("a") as file, redirect_stdout(file):
        return fake_environment.main(list(words))


@pytest.fixture
def checks(tmp_path) -> Path:
    """The folder of the checks."""
    folder = tmp_path / "results" / "semester"
    folder.mkdir(parents=True)
    return folder
