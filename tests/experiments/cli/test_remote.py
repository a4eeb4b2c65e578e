"""`testbed logs` and `testbed top` for runs on this machine."""

import threading
import time

import pytest

from experiments.cli.app import main
from experiments.results.schema import LOG_FILE, RESULT_FILE, RESULTS_FILE
from tests.support.runners import rows


@pytest.fixture
def row(tmp_path):
    folder = rows.folder(tmp_path / "run", "a", site="local")
    folder.row_folder_named("a").mkdir(parents=True)
    return folder.row_folder_named("a")


def test_a_log_is_printed(row, tmp_path, capfdbinary):
    (row / LOG_FILE).write_bytes(b"said \xff\n")
    assert main(["logs", "a", str(tmp_path / "run")]) == 0
    assert capfdbinary.readouterr().out == b"said \xff\n"


def test_a_log_is_followed_until_the_row_ends(row, tmp_path, capfd):
    def write() -> None:
        time.sleep(0.3)
        (row / LOG_FILE).write_text("first\n")
        time.sleep(1.3)
        with (row / LOG_FILE).open("a") as log:
            log.write("last\n")
        (row / RESULT_FILE).write_text("{}")

    writer = threading.Thread(target=write)
    writer.start()
    assert main(["logs", "-f", "a", str(tmp_path / "run")]) == 0
    writer.join()
    assert capfd.readouterr().out == "first\nlast\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["logs", "a", "RUN"], "no log.txt at this machine yet"),
        (["logs", "b", "RUN"], "unknown row 'b'; allowed: a"),
        (["logs", "a", "RUN/none"], "not a run's folder"),
        (["logs", "nosuch"], "logs of row nosuch: results/latest: not a run's folder"),
        (
            ["logs", "RUN"],
            "ROW RUN: is a run's folder; allowed: the id of a row, then the folder, as in testbed logs ROW RUN",
        ),
        (["logs", "RUN", "a"], "ROW RUN: is a run's folder"),
        (["top", "--json"], "--json: allowed with --once only"),
        (["top", "--once"], "no lease with a reachable machine; create one with `testbed lease`"),
        (["top", "--once", "--site", "local"], "--site local: allowed: slurm with --profile, chameleon"),
    ],
)
def test_an_error_is_reported_in_one_line(row, tmp_path, capfd, monkeypatch, arguments, message):
    monkeypatch.setenv("TESTBED_LEDGER", str(tmp_path / "ledger"))
    monkeypatch.chdir(tmp_path)
    run = str(tmp_path / "run")
    assert main([one.replace("RUN", run) for one in arguments]) == 2
    error = capfd.readouterr().err
    assert message.replace("RUN", run) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("follow", [[], ["-f"]])
def test_the_command_does_not_wait_for_the_log_of_a_row_that_ended_without_one(row, tmp_path, capfd, follow):
    (row / RESULT_FILE).write_text("{}")
    assert main(["logs", *follow, "a", str(tmp_path / "run")]) == 2
    assert "no output in log.txt at this machine; the row has ended" in capfd.readouterr().err


@pytest.mark.parametrize("follow", [[], ["-f"]])
def test_a_run_stored_in_compact_form_is_rejected_because_it_has_no_logs(row, tmp_path, capfd, follow):
    (tmp_path / "run" / RESULTS_FILE).touch()
    assert main(["logs", *follow, "a", str(tmp_path / "run")]) == 2
    assert "the run is stored in compact form, without logs" in capfd.readouterr().err
