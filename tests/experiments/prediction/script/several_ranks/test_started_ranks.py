"""Scripts that start their ranks themselves, and notes on GPUs that a script does not use."""

import pytest

from experiments.errors import InputError
from experiments.prediction.script.trace import ScriptFailed

TRAIN = """
import sys, torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

def train(rank, size, word="x"):
    if not dist.is_initialized():
        dist.init_process_group("nccl", rank=rank, world_size=size)
    assert (dist.get_rank(), dist.get_world_size(), word) == (rank, size, "x")
    torch.cuda.set_device(rank)
    model = DistributedDataParallel(torch.nn.Linear(1024, 1024).to(rank), device_ids=[rank])
    optimizer = torch.optim.SGD(model.parameters())
    for _ in range(9):
        model(torch.ones(1024 * (1 + rank), 1024, device=rank)).sum().backward()
        optimizer.step()
"""
NOTEBOOK_LAUNCHER = """
from accelerate import Accelerator, notebook_launcher

def main():
    train(Accelerator().process_index, 2)
notebook_launcher(main, num_processes=2)
"""


@pytest.mark.parametrize(
    "start",
    [
        "mp.spawn(train, args=(2, 'x'), nprocs=2)",
        "assert mp.spawn(train, args=(2,), nprocs=2, join=False).join()",
        "mp.start_processes(train, args=(2,), nprocs=2, start_method='fork')",
    ],
)
def test_ranks_that_a_script_starts_itself_run_one_after_the_other(trace, start):
    first, second = trace(TRAIN + start, all_ranks=True)
    assert [(one.rank, one.ranks, one.steps) for one in (first, second)] == [(0, 2, 2), (1, 2, 2)]
    assert second.peak_gib > first.peak_gib
    for one in (first, second):
        assert "the script itself starts 2 ranks; each predicted rank ran in one process" in one.notes


def test_ranks_that_the_notebook_launcher_of_accelerate_starts_are_simulated(trace_in_new_process):
    (one,) = trace_in_new_process(TRAIN + NOTEBOOK_LAUNCHER)
    assert (one.ranks, one.steps) == (2, 2)


def test_memory_of_a_rank_is_the_same_whether_the_script_or_a_launcher_starts_it(trace):
    source = TRAIN + "if 'here' in sys.argv:\n    mp.spawn(train, args=(2,), nprocs=2)\nelse:\n    train(0, 2)\n"
    (spawned,), (launched,) = trace(source, "here"), trace(source, before=("torchrun", "--nproc-per-node", "2"))
    assert (spawned.peak_gib, spawned.cards[0].needed_gib) == (launched.peak_gib, launched.cards[0].needed_gib)


def test_a_script_that_starts_a_rank_for_each_gpu_starts_one_and_a_note_says_so(traced):
    one = traced(TRAIN + "mp.spawn(train, args=(torch.cuda.device_count(),), nprocs=torch.cuda.device_count())")
    assert one.ranks == 1
    assert "the script itself starts 1 rank, as torch.cuda.device_count() is 1; " in one.notes[0]


def test_a_script_without_a_launcher_has_as_many_ranks_as_its_group_or_its_environment_states(traced, monkeypatch):
    assert traced(TRAIN + "train(0, 2)").ranks == 2
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert traced(TRAIN + "dist.init_process_group()\ntrain(0, 3)").ranks == 3


def test_a_device_mesh_makes_the_simulated_group(traced):
    one = traced(
        TRAIN + "torch.distributed.device_mesh.init_device_mesh('cuda', (2,))\ntrain(0, 2)",
        before=("torchrun", "--nproc-per-node", "2"),
    )
    assert (one.ranks, one.steps) == (2, 2)


def test_a_note_says_that_a_later_start_has_the_ranks_of_the_first_one(traced):
    one = traced(TRAIN + "mp.spawn(print, nprocs=3)\nmp.spawn(train, args=(3,), nprocs=2)")
    assert one.ranks == 3
    assert "the script started 2 ranks later; they were traced as 3 ranks" in one.notes


def test_a_note_says_that_data_parallel_trains_on_one_gpu(traced):
    one = traced("""
        import torch
        model = torch.nn.DataParallel(torch.nn.Linear(8, 8).cuda())
        model(torch.ones(4, 8, device="cuda")).sum().backward()
        """)
    assert any(note.startswith("DataParallel trained on one GPU, with the whole batch") for note in one.notes)


FAILING = """
import subprocess, sys, torch
import torch.multiprocessing as mp

def fail(rank):
    torch.nn.Linear(1024, 1024).cuda()
    {end}
"""


ATTEMPT = """
try:
    {start}
except BaseException:
    print("went on")
"""


@pytest.mark.parametrize(("end", "code"), [("raise ValueError('own error')", 1), ("sys.exit(5)", 5)])
def test_a_rank_that_fails_after_it_used_the_gpu_ends_the_trace_even_if_the_script_goes_on(trace, capfd, end, code):
    with pytest.raises(ScriptFailed, match=f"the script itself failed with exit code {code}") as caught:
        trace(FAILING.format(end=end) + ATTEMPT.format(start="mp.spawn(fail, nprocs=2)"))
    output = capfd.readouterr().err
    assert "went on" not in output
    assert caught.value.code == code
    assert ("ValueError: own error" in output) == (code == 1)


def test_the_same_applies_to_a_rank_that_the_notebook_launcher_starts(trace_in_new_process, capfd):
    start = "notebook_launcher(fail, (0,), num_processes=2)"
    source = "from accelerate import notebook_launcher" + FAILING.format(end="raise ValueError('own error')")
    with pytest.raises(ScriptFailed, match="the script itself failed with exit code 1"):
        trace_in_new_process(source + ATTEMPT.format(start=start))
    output = capfd.readouterr().err
    assert "went on" not in output
    assert output.count("ValueError: own error") == 1


@pytest.mark.parametrize(
    "starter",
    [
        "[sys.executable, 'inner.py']",
        "['torchrun', '--nproc-per-node=2', 'inner.py']",
        "['accelerate', 'launch', '--num_processes=2', 'inner.py']",
        "['deepspeed', '--no_local_rank', '--num_gpus=2', 'inner.py']",
    ],
)
def test_a_started_program_that_fails_after_it_used_the_gpu_gives_its_exit_code(trace, tmp_path, capfd, starter):
    (tmp_path / "inner.py").write_text(FAILING.format(end="raise ValueError('own error')") + "fail(0)\n")
    with pytest.raises(ScriptFailed, match="the script itself failed with exit code 1; its output is above"):
        trace(f"import subprocess, sys\nsubprocess.run({starter})\nprint('went on')\n")
    output = capfd.readouterr().err
    assert "went on" not in output
    assert output.count("ValueError: own error") == 1


def test_a_failure_that_a_script_ignores_before_anything_used_the_gpu_is_the_failure_of_the_trace(trace, tmp_path):
    (tmp_path / "inner.py").write_text("raise SystemExit(7)")
    with pytest.raises(ScriptFailed, match="the script itself failed with exit code 7") as caught:
        trace("import subprocess, sys\nsubprocess.run([sys.executable, 'inner.py'])\n")
    assert caught.value.code == 7


def test_a_script_goes_on_after_a_launcher_that_rejects_its_arguments_with_its_own_environment(traced):
    one = traced(
        TRAIN
        + """
import os, subprocess
assert subprocess.run(["torchrun", "--no-such-option"], env={**os.environ, "SEEN": "1"}).returncode == 2
assert "SEEN" not in os.environ
train(0, 2)
"""
    )
    assert one.steps == 2


def test_a_rank_that_ends_itself_with_exit_code_0_lets_the_script_go_on(traced):
    one = traced(TRAIN + "mp.spawn(lambda rank: sys.exit(0), nprocs=2)\nmp.spawn(train, args=(2,), nprocs=2)")
    assert (one.ranks, one.steps) == (2, 2)


def test_a_script_that_ends_its_process_itself_is_predicted_and_a_forked_process_ends_as_usual(traced):
    one = traced("""
        import os, torch
        if not (forked := os.fork()):
            os._exit(0)
        assert os.waitpid(forked, 0)[1] == 0
        torch.ones(2**20, device="cuda")
        os._exit(0)
        """)
    assert (one.ended, one.peak_gib > 0) == ("ended", True)


@pytest.mark.parametrize(("end", "code"), [("sys.exit(-1)", 255), ("sys.exit(257)", 1), ("os._exit(5)", 5)])
def test_the_exit_code_of_a_script_is_that_which_linux_reports(trace, end, code):
    with pytest.raises(ScriptFailed, match=f"exit code {code}") as caught:
        trace(f"import os, sys\n{end}\n")
    assert caught.value.code == code


def test_a_script_that_replaces_its_process_is_named(trace_in_new_process):
    with pytest.raises(InputError, match=r"the script replaced its process by another program \(os.exec\)"):
        trace_in_new_process("import os, sys\nos.execv(sys.executable, [sys.executable, '-c', ''])\n")


def test_a_script_that_is_killed_may_have_run_out_of_memory(trace_in_new_process):
    with pytest.raises(ScriptFailed, match="signal SIGKILL; its output is above; probably this machine"):
        trace_in_new_process("import os\nos.kill(os.getpid(), 9)\n")


@pytest.mark.parametrize("limit_s", [0.0, -1.0, 1e300])
def test_an_impossible_time_limit_is_rejected(trace_in_new_process, limit_s):
    with pytest.raises(InputError, match=r"--time-limit .*: allowed: more than 0 and at most 1e.08 seconds"):
        trace_in_new_process("", limit_s=limit_s)


def test_a_time_limit_ends_a_script_that_uses_the_alarm_of_linux_itself(traced):
    one = traced(
        """
        import signal, torch
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.alarm(0)
        torch.ones(2**20, device="cuda")
        while True:
            pass
        """,
        limit_s=2.0,
    )
    assert one.ended == "time limit"
