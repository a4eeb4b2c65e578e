"""The command line on a machine without a GPU, and a finished run."""

import pytest

from experiments.cli.app import main
from experiments.pipeline import run_suite
from experiments.run_options import RunOptions
from tests.support.runners.fake_runner import SUITE
from tests.support.runners.fake_view import RecordingView


@pytest.fixture
def testbed(capsys, machine):
    """Run the command line on a machine without a GPU; return exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def finished_folder(machine, tmp_path):
    """The folder of a finished run of two rows."""
    return run_suite(
        RunOptions(SUITE, rows=("reduced-batch", "xxl"), results=tmp_path / "made"), RecordingView()
    ).folder
