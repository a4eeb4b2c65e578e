"""The program of a job, which runs one row on the job's machine. Fakes: the machine and its runner."""

from typing import Any

import pytest

from experiments.errors import Interrupted
from experiments.results.schema import RESULT_FILE
from experiments.runners.slurm import job
from provision.models import Node
from tests.support.runners import rows


@pytest.fixture
def run_job(tmp_path, monkeypatch):
    """Run a row as a job; return the exit code, the run's folder and the arguments of the runner."""
    folder = rows.folder(tmp_path / "run", "a")
    runners: list[Any] = []

    def start(spec, node: Node, nodes="1", problem=None):
        class Runner:
            def __init__(self, *arguments):
                runners.append(arguments)

            def run(self, planned):
                runners.append([(row.row, row.must_run) for row in planned])
                if problem:
                    raise problem

        monkeypatch.setattr(job, "this_machine", lambda: node)
        monkeypatch.setattr(job, "LocalRunner", Runner)
        (tmp_path / "spec.json").write_text(spec.model_dump_json())
        arguments = (str(folder.path), str(tmp_path / "spec.json"), "some.worker", "120", nodes)
        return job.main(*arguments), folder, runners

    return start


def test_a_row_runs_on_the_machine_of_its_job(run_job, capsys):
    node = rows.node(rows.GPU)
    code, folder, ((ran_in, machine, memory_gib, _, *options), planned) = run_job(rows.spec("a"), node)
    assert (code, ran_in.path, machine, memory_gib) == (0, folder.path, node, 64.0)
    assert options == ["some.worker", 120.0, 1]
    assert planned == [("a", True)]
    assert capsys.readouterr().out == "lab/a on a machine of the tests\n"


def test_a_row_that_needs_more_than_its_job_has_is_rejected_with_a_result(run_job):
    code, folder, runners = run_job(rows.spec("a"), rows.node())
    assert (code, runners) == (0, [])
    assert folder.results()["a"].outcome == "rejected"
    assert (folder.row_folder_named("a") / RESULT_FILE).exists()


@pytest.mark.parametrize(("nodes", "runs"), [("1", False), ("2", True)])
def test_a_row_of_two_nodes_needs_only_half_of_its_gpus_on_the_first_node(run_job, nodes, runs):
    wide = rows.spec("a", nodes=2, devices=1, strategy="ddp")
    code, _, runners = run_job(wide, rows.node(rows.GPU), nodes)
    assert (code, bool(runners)) == (0, runs)


def test_an_interrupted_job_ends_with_exit_code_130(run_job, capsys):
    code, *_ = run_job(rows.spec("a"), rows.node(rows.GPU), problem=Interrupted("SIGTERM"))
    assert code == 130
    assert "stopped by SIGTERM" in capsys.readouterr().out
