"""The monitor: GPUs and rows, read from the output of fake commands on this machine."""

import pytest
from rich.console import Console

from experiments.results.schema import PROGRESS_FILE, Memory, Progress
from experiments.runners.monitor import (
    MonitoredGpu,
    MonitoredRow,
    Observation,
    monitor_table,
    observe,
    parse_gpus,
)
from experiments.runners.targets import MonitorTarget
from provision.errors import NotReached
from provision.ssh.shell import LocalShell
from tests.support.runners.fake_cluster import DroppingShell

ROW = "run/lab/a"
QUERIED = """\
GPU-0, 0, NVIDIA A100-SXM4-80GB, 97, 40960, 81920, 61
GPU-1, 1, NVIDIA A100-SXM4-80GB, [N/A], 0, 81920, [N/A]"""
SQUEUE = """\
12|PENDING|Resources|run/lab/b|llm-testbed 1234 5678
11|RUNNING|None|run/lab/a|llm-testbed 1234 5678
10|COMPLETED|None|run/lab/c|llm-testbed 1234 5678
9|RUNNING|None|another|of somebody"""


class UnreachableShell(LocalShell):
    where = "node-2"

    def run(self, command, **options):
        raise NotReached("node-2: not reached")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Put fakes of squeue and nvidia-smi on PATH, which print SQUEUE and QUERIED; one GPU process belongs to no row."""
    for name, body in (
        ("squeue", f"cat <<'E'\n{SQUEUE}\nE"),
        ("nvidia-smi", f'case "$*" in *compute*) echo "GPU-0, 1" ;; *) cat <<E\n{QUERIED}\nE\n;; esac'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / ROW).mkdir(parents=True)
    at = Progress(phase="backward", step=2, micro_steps=3, planned_micro_steps=9, memory=Memory(peak_gib=12.5))
    (tmp_path / ROW / PROGRESS_FILE).write_text(at.model_dump_json(indent=2))
    return MonitorTarget(LocalShell(), str(tmp_path), (("node-1", LocalShell()),))


def test_gpus_have_the_values_that_the_driver_reports(machine):
    first, second = observe(machine).gpus
    assert first == MonitoredGpu("node-1", 0, "NVIDIA A100-SXM4-80GB", 97.0, 40.0, 80.0, 61.0, ("process 1",))
    assert (second.utilization, second.celsius, second.users) == (None, None, ())


def test_rows_of_the_user_are_listed_with_running_rows_first(machine):
    running, waiting = observe(machine).rows
    assert (running.name, running.state, running.progress.micro_steps) == (ROW, "RUNNING", 3)
    assert (waiting.name, waiting.state, waiting.reason) == ("run/lab/b", "PENDING", "Resources")


def test_the_monitor_continues_if_a_connection_drops(machine):
    steady = observe(machine)
    dropping = MonitorTarget(DroppingShell(), machine.folder, (("node-1", DroppingShell()),))
    assert observe(dropping) == steady


def test_rows_are_listed_in_the_order_of_their_jobs(machine, tmp_path):
    jobs = {"30": "PENDING", "9": "PENDING", "101": "RUNNING", "22": "RUNNING", "4_1": "RUNNING", "5": "COMPLETED"}
    lines = [f"{id}|{state}|Priority|run/lab/{id}|llm-testbed 1 2" for id, state in jobs.items()]
    (tmp_path / "squeue").write_text("#!/bin/sh\ncat <<'E'\n" + "\n".join(lines) + "\nE\n")
    found = observe(machine).rows
    assert [row.name.rpartition("/")[2] for row in found] == ["4_1", "22", "101", "9", "30"]
    assert [row.reason for row in found] == ["", "", "", "Priority", "Priority"]


def test_other_nodes_are_shown_if_one_node_does_not_answer(machine):
    nodes = (("node-2", UnreachableShell()), *machine.nodes)
    observation = observe(MonitorTarget(machine.shell, machine.folder, nodes))
    assert (len(observation.gpus), observation.unreachable) == (2, ("node-2: not reached",))


def test_gpus_and_rows_are_shown_as_tables(machine):
    console = Console(width=120)
    with console.capture() as captured:
        console.print(monitor_table(observe(machine)))
    output = captured.get()
    for words in ("97 %", "40.0 of 80.0", "61 °C", "backward", "3 of 9", "12.5", "pending (Resources)", "process 1"):
        assert words in output


def rows_of_table(observation, width=120):
    console = Console(width=width)
    with console.capture() as captured:
        console.print(monitor_table(observation))
    return captured.get().splitlines()


def test_numbers_are_right_aligned_and_unknown_ones_are_marked(machine):
    short, long = MonitoredGpu("n", 0, "GPU", 7.0, 4.0, 8.0, 5.0), MonitoredGpu("n", 1, "GPU", 100.0, None, 80.0, 61.0)
    states = [MonitoredRow(f"run/lab/{row}", "RUNNING", "", progress(steps)) for row, steps in (("a", 9), ("b", 10000))]
    lines = rows_of_table(Observation((short, long), tuple(states)))
    gpus, rows = [line for line in lines if line.startswith("n ")], [line for line in lines if "lab/" in line]
    for words in (("  7 %", "100 %"), (" 5 °C", "61 °C")):
        assert len({line.index(word) for line, word in zip(gpus, words, strict=True)}) == 1
    assert "? of 80.0" in gpus[1]
    for words in (("    9 of 20000", "10000 of 20000"), (" 1 GiB", "10 GiB"), ("   0:09", "2:46:40")):
        assert len({line.index(word) for line, word in zip(rows, words, strict=True)}) == 1


def progress(steps):
    peak = Memory(peak_gib=1.0 if steps < 10 else 10.0)
    return Progress(phase="forward", step=1, micro_steps=steps, planned_micro_steps=20000, memory=peak, left_s=steps)


@pytest.mark.parametrize("optional", ["temperature", "run"])
def test_a_column_that_does_not_fit_is_hidden(machine, optional):
    observation = observe(machine)
    hidden = [line for width in range(40, 121) for line in rows_of_table(observation, width) if "not shown" in line]
    assert f"not shown at this width: {optional}" in {line.strip() for line in hidden}


def test_a_long_state_is_wrapped_in_its_column():
    reason = "ReqNodeNotAvail, Reserved for maintenance, until tomorrow"
    lines = rows_of_table(Observation((), (MonitoredRow("run/lab/a", "PENDING", reason),)), width=60)
    (header,) = [line for line in lines if "state" in line]
    assert header.split() == ["row", "state", "run"]


def test_the_table_says_so_if_there_are_no_rows_and_values():
    gpu = MonitoredGpu("n", 0, "GPU", None, None, None, None)
    text = "\n".join(rows_of_table(Observation((gpu,), (), ("node-2: not reached",))))
    assert "? of ?" in text
    assert text.splitlines()[-2:] == ["no rows", "node-2: not reached"]


def test_on_a_shared_cluster_the_gpus_are_queried_inside_the_running_jobs(machine, tmp_path):
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$@" | head -n 1 >> "$(dirname "$0")/queried"\necho "gpu, 1"\n')
    (tmp_path / "srun").chmod(0o755)
    observe(MonitorTarget(machine.shell, machine.folder))
    (line,) = (tmp_path / "queried").read_text().splitlines()
    assert line.startswith("--quiet --jobid=11 --overlap --ntasks=1 sh -c ")


def test_processes_on_a_gpu_are_shown_as_suite_and_row_and_each_row_once():
    gpu = "gpu, GPU-0, 0, NVIDIA A100-SXM4-80GB, 97, 40960, 81920, 61"
    users = ["process, GPU-0, 7, /data/run/lab/a", "process, GPU-0, 8, /data/run/lab/a", "process, GPU-0, 9, "]
    (found,) = parse_gpus("\n".join([gpu, *users, "process, GPU-0", "process, GPU-1, 5, ", "gpu, not a line"]), "n")
    assert found.users == ("lab/a", "process 9")


def test_a_gpu_that_is_found_by_two_queries_is_counted_once(machine):
    twice = MonitorTarget(machine.shell, machine.folder, machine.nodes * 2)
    assert len(observe(twice).gpus) == 2
