"""Unchanged training scripts on the phantom device."""

import os
import sys

import nbformat
import pytest

from experiments.errors import InputError
from experiments.prediction.script import trace as tracing
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.record import ScriptPrediction, smallest_card
from experiments.prediction.script.trace import ScriptFailed, SimulationFailed, describe_command, trace_script
from experiments.results.predictions import PeakParts
from experiments.suites.attention_kernels import group_by_kernels
from experiments.suites.cards import parse_card_list
from tests.experiments.prediction.script.conftest import CARD
from tests.support.runners.fake_predictions import card_prediction

MIB = 2**20
GIB = 2**30
START = """
import sys, torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.ReLU(), nn.Linear(1024, 1024, bias=False)).cuda()
batch = torch.zeros(8192, 1024, device="cuda")
"""
"""Weights of 4 MiB in each of two layers; a batch, and each activation, of 32 MiB."""
LOOP = (
    START
    + """
optimizer = torch.optim.Adam(model.parameters(), foreach=False)
for step in range(1000):
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()
    print("step", step, file=sys.stderr)
"""
)


def test_a_training_loop_is_stopped_after_two_steps_and_its_memory_is_divided_by_kind(trace_in_new_process, capfd):
    (one,) = trace_in_new_process(LOOP)
    assert (one.ended, one.steps, one.optimizers, one.model) == ("stopped", 2, ("Adam",), "Sequential")
    assert [line for line in capfd.readouterr().err.splitlines() if line.startswith("step")] == ["step 0", "step 1"]
    assert (one.parameters, one.trainable_parameters) == (2 * 1024**2, 2 * 1024**2)
    assert one.at_peak.params_gib == 8 * MIB / GIB
    assert one.at_peak.optimizer_gib == pytest.approx(16 * MIB / GIB, abs=1024 / GIB)
    step = ["forward", "backward", "optimizer step"]
    assert [begun.phase for begun in one.phases] == ["load", *step, *step, "forward", "backward"]
    assert max(one.timeline_gib) == pytest.approx(one.peak_gib, abs=0.001)
    assert sum(share.size_gib for share in one.modules) == pytest.approx(one.peak_gib, abs=0.001)
    assert sum(block.size_gib for block in one.blocks) == pytest.approx(one.peak_gib, abs=0.001)
    assert ("1", "forward", "activations") in {(share.module, share.phase, share.category) for share in one.modules}


def test_more_steps_are_traced_on_request(traced):
    assert traced(LOOP, steps=4).steps == 4


def test_a_step_is_counted_once_with_micro_steps_a_closure_or_one_optimizer_per_parameter(traced):
    accumulated = traced(LOOP.replace("optimizer.step()", "step % 4 == 3 and optimizer.step()"))
    assert [begun.phase for begun in accumulated.phases].count("backward") == 12
    closure = (
        START
        + """
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
def closure():
    optimizer.zero_grad()
    loss = model(batch).square().mean()
    loss.backward()
    return loss
while True:
    optimizer.step(closure)
"""
    )
    one = traced(closure)
    assert (one.steps, one.ended) == (2, "stopped")
    assert [begun.phase for begun in one.phases][:4] == ["load", "forward", "backward", "optimizer step"]
    inside = (
        START
        + """
optimizers = {one: torch.optim.SGD([one], lr=1.0, momentum=0.9) for one in model.parameters()}
def step(parameter):
    optimizers[parameter].step()
    optimizers[parameter].zero_grad()
for one in model.parameters():
    one.register_post_accumulate_grad_hook(step)
for number in range(1000):
    model(batch).square().mean().backward()
"""
    )
    one = traced(inside)
    assert (one.steps, one.ended) == (2, "stopped")
    assert one.at_peak.optimizer_gib == 8 * MIB / GIB


def test_a_script_without_an_optimizer_step_runs_to_its_end(traced):
    one = traced(START + "with torch.no_grad():\n    model.eval()(batch)\n")
    assert (one.ended, one.steps, one.optimizers) == ("ended", 0, ())
    assert one.peak_gib > 8 * MIB / GIB


def test_a_script_is_stopped_at_its_time_limit(traced):
    one = traced(START + "import signal\nsignal.raise_signal(signal.SIGRTMIN + 7)")
    assert one.ended == "time limit"


def test_a_script_that_fails_has_its_own_traceback_and_exit_code(trace, capfd):
    with pytest.raises(ScriptFailed, match="the script itself failed with exit code 1"):
        trace(START + "def layer():\n    return model(batch[:, :7])\nlayer()\n")
    printed = capfd.readouterr().err
    assert 'train.py", line ' in printed
    assert "in layer" in printed
    assert "runpy" not in printed
    assert "experiments/prediction/script" not in printed
    with pytest.raises(ScriptFailed) as caught:
        trace("import sys\nsys.exit(7)")
    assert caught.value.code == 7
    with pytest.raises(ScriptFailed, match="signal SIGKILL"):
        trace("import os\nos.kill(os.getpid(), 9)")


def test_an_error_raised_by_the_simulated_gpu_is_not_said_to_be_one_of_the_script(trace, capfd):
    with pytest.raises(ScriptFailed, match=r"^the simulated GPU does not support this: AttributeError"):
        trace("import torch\ntorch.cuda.Stream().wait_event(None)\n")
    assert "in wait_event" in capfd.readouterr().err


def test_a_failure_before_the_script_starts_is_one_of_the_program(trace_in_new_process, tmp_path, monkeypatch):
    (tmp_path / "accelerate.py").write_text("raise TypeError('broken package')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(SimulationFailed, match=r"^the simulation failed: TypeError: broken package.*fault of testbed"):
        trace_in_new_process("import torch", before=("accelerate", "launch"))


def test_a_progress_line_shows_a_command_up_to_the_name_of_its_program():
    launcher = ["accelerate", "launch", "--num_processes", "2", "--use_fsdp"]
    assert describe_command([*launcher, "train.py", "--lr", "1"]) == " ".join([*launcher, "train.py"])
    assert describe_command([*launcher, "-m", "pkg.train", "--lr"]) == " ".join([*launcher, "-m", "pkg.train"])
    assert describe_command(["python", "train.py", "a", "b", "c"]) == "python train.py a b"


def test_a_script_that_uses_no_gpu_is_an_error_in_one_line(trace):
    with pytest.raises(InputError, match="allocated nothing on the GPU"):
        trace("import torch\ntorch.zeros(4)")


def test_a_module_runs_as_in_python_and_a_notebook_as_in_jupyter(trace, tmp_path):
    cells = [nbformat.v4.new_code_cell(text) for text in ("%time pass", START, LOOP.removeprefix(START))]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "lab.ipynb")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(f"import sys\nassert sys.argv[1:] == ['--fast']\n{LOOP}")
    for words in (["lab.ipynb"], ["python", "-m", "package", "--fast"]):
        (found,) = trace_script(words, CARD, lambda _: None, ScriptOptions())
        assert found.steps == 2


@pytest.mark.parametrize("device", ["'cuda'", "torch.device('cuda', rank)", "rank"])
def test_each_rank_of_a_launcher_is_traced_with_its_own_data_on_its_own_gpu(trace, device):
    source = """
import os, torch
import torch.distributed as dist
from torch import nn
dist.init_process_group("nccl")
rank = dist.get_rank()
assert (rank, dist.get_world_size()) == (int(os.environ["RANK"]), 2)
torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
model = nn.parallel.DistributedDataParallel(nn.Linear(1024, 1024, bias=False).to(DEVICE))
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
while True:
    optimizer.zero_grad()
    model(torch.zeros(1024 * (1 + rank), 1024, device=DEVICE)).square().mean().backward()
    optimizer.step()
""".replace("DEVICE", device)
    first, second = trace(source, before=("torchrun", "--nproc-per-node", "2"), all_ranks=True)
    assert [(one.rank, one.ranks) for one in (first, second)] == [(0, 2), (1, 2)]
    assert second.peak_gib - first.peak_gib > 4 * MIB / GIB
    assert first.at_peak.params_gib == second.at_peak.params_gib == 4 * MIB / GIB


DDP = """
import sys, torch
import torch.distributed as dist
from torch import nn
dist.init_process_group("nccl")
model = nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.ReLU(), nn.Linear(1024, 1024, bias=False)).cuda()
model = nn.parallel.DistributedDataParallel(model, find_unused_parameters="unused" in sys.argv)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
while True:
    if "between" in sys.argv:
        dist.barrier()
    model(torch.zeros(8192, 1024, device="cuda")).square().exp().sin().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
"""Weights of 8 MiB; the peak is at the start of the backward pass. DDP replaces its buckets before the second one."""


def test_buckets_that_ddp_replaces_stay_allocated_until_the_next_collective_operation(trace):
    torchrun = ("torchrun", "--nproc-per-node", "2")
    (kept,), (freed,) = (trace(DDP, *words, before=torchrun) for words in ((), ("between",)))
    assert kept.peak_gib - freed.peak_gib == pytest.approx(8 * MIB / GIB, abs=0.5 * MIB / GIB)


def test_ddp_with_a_search_for_unused_parameters_is_traced(trace):
    (one,) = trace(DDP, "unused", before=("torchrun", "--nproc-per-node", "2"))
    assert one.steps == 2


def test_memory_of_retained_graphs_is_attributed_to_their_line_and_grows_with_the_steps(traced):
    source = LOOP.replace("for step", "kept = []\nfor step").replace(
        "    model(batch).square().mean().backward()",
        "    kept.append(model(batch).square().mean())\n    kept[-1].backward(retain_graph=True)",
    )
    two, four = traced(source), traced(source, steps=4)
    graph = 2 * 32 * MIB / GIB
    assert four.peak_gib - two.peak_gib == pytest.approx(2 * graph, rel=0.01)
    assert two.peak_gib - traced(LOOP).peak_gib > graph
    line = next(number for number, text in enumerate(source.splitlines(), 1) if "kept.append" in text)
    assert sum(one.size_gib for one in four.lines if one.line == f"train.py:{line}") > 4 * graph


def test_ctc_loss_allocates_its_table_of_paths_in_both_passes(traced):
    one = traced("""
        import torch
        from torch import nn
        torch.manual_seed(0)
        model = nn.Linear(64, 32).cuda()
        optimizer = torch.optim.SGD(model.parameters())
        labels = torch.randint(1, 32, (16, 256)).cuda()
        times, lengths = torch.full((16,), 1024).cuda(), torch.full((16,), 256).cuda()
        for _ in range(9):
            scores = model(torch.zeros(1024, 16, 64, device="cuda")).log_softmax(-1)
            torch.nn.functional.ctc_loss(scores, labels, times, lengths).backward()
            optimizer.step()
    """)
    table, scores = 16 * 1024 * (2 * 256 + 1) * 4 / GIB, 16 * 1024 * 32 * 4 / GIB
    assert 2 * table < one.at_peak.activations_gib < 2 * table + 6 * scores


def test_cards_with_the_same_kernels_share_one_trace(trace):
    found = trace(LOOP, cards=["h100_94gb", "a100_80gb", "a100_40gb"])
    assert sorted([card.card for card in one.cards] for one in found) == [["a100_80gb", "a100_40gb"], ["h100_94gb"]]
    assert [card.outcome for one in found for card in one.cards] == ["fits"] * 3


def test_cards_are_given_as_a_list_of_names_or_as_the_word_all():
    assert parse_card_list("a100_80gb, v100_32gb,a100_80gb") == ["a100_80gb", "v100_32gb"]
    assert sorted(name for group in group_by_kernels(parse_card_list("all")) for name in group) == sorted(
        parse_card_list("all")
    )
    with pytest.raises(InputError, match="unknown card 'a100'"):
        parse_card_list("v100_32gb,a100")


def test_a_large_model_that_a_script_builds_on_the_host_takes_no_host_memory(traced):
    source = (
        START
        + """
import resource
limit = 8 * 2**30
resource.setrlimit(resource.RLIMIT_RSS, (limit, limit))
large = nn.Linear(65536, 65536, bias=False)
import psutil
assert psutil.Process().memory_info().rss < 4 * 2**30, psutil.Process().memory_info().rss
large.cuda()
"""
    )
    one = traced(source)
    assert one.peak_gib > 16
    assert one.host_gib >= 16


def test_missing_weights_are_replaced_by_random_ones_on_request(trace):
    source = """
import torch
from transformers import AutoModelForCausalLM, GPT2Config
GPT2Config(n_layer=2, n_embd=128, n_head=2).save_pretrained("small")
model = AutoModelForCausalLM.from_pretrained("small", dtype=torch.bfloat16).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
while True:
    text = torch.zeros(2, 16, dtype=torch.long, device="cuda")
    model(input_ids=text, labels=text).loss.backward()
    optimizer.step()
"""
    with pytest.raises(ScriptFailed):
        trace(source)
    (one,) = trace(source, fake_weights=True)
    assert (one.model, one.steps) == ("GPT2LMHeadModel", 2)
    assert one.at_peak.params_gib == pytest.approx(2 * one.parameters / GIB, rel=0.01)


def test_a_script_runs_in_the_python_interpreter_of_the_command(traced, capfd):
    traced(START + "print(sys.executable, file=sys.stderr)")
    assert sys.executable in capfd.readouterr().err


def test_the_memory_at_the_peak_is_divided_by_lines_of_the_script_even_in_the_backward_pass(traced):
    one = traced(
        LOOP.replace(
            "model(batch).square().mean().backward()", "loss = model(batch).square().mean()\n    loss.backward()"
        )
    )
    lines = LOOP.splitlines()
    source = {number: line.strip() for number, line in enumerate(lines, 1)}
    params = next(share for share in one.lines if share.category == "params")
    file, number = params.line.split(":")
    assert file == "train.py"
    assert source[int(number)].startswith("model = ")
    assert sum(share.size_gib for share in one.lines) == pytest.approx(one.peak_gib, abs=0.001)


def test_a_script_may_import_bitsandbytes(traced):
    one = traced(
        START
        + """
import bitsandbytes as bnb
assert bnb.nn.Linear4bit
optimizer = bnb.optim.Adam8bit(model.parameters())
while True:
    model(batch).square().mean().backward()
    optimizer.step()
"""
    )
    assert one.optimizers == ("Adam8bit",)
    assert one.at_peak.optimizer_gib == pytest.approx(4 * MIB / GIB, rel=0.05)


def test_complex_views_and_masks_of_ones_behave_as_on_a_gpu(traced):
    traced(
        START
        + """
pairs = torch.zeros(4, 8, 2, device="cuda")
turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(pairs))
assert turned.shape == pairs.shape
mask = torch.ones(2, 4, device="cuda")
assert mask.to(torch.bool).all()
mask.mul_(0)
assert not mask.to(torch.bool).all()
"""
    )


def test_a_sum_over_many_rows_takes_scratch_memory(traced):
    source = """
import torch
rows = torch.zeros(4096, 768, device="cuda")
before = torch.cuda.memory_allocated()
torch.cuda.reset_peak_memory_stats()
rows.sum(0)
scratch = torch.cuda.max_memory_allocated() - before
assert scratch == 24 * 2**20 + 3072, scratch  # as measured on an H100
"""
    traced(source, cards=["h100_94gb"])


GROUPS = {
    "a100_80gb": 60.0,
    "a30_24gb": 60.0,
    "h100_80gb": 61.0,
    "v100_16gb": 70.0,
    "mi210_64gb": 60.0,
    "h200_141gb": 61.0,
}


def test_the_smallest_card_that_fits_is_found_with_few_traces(monkeypatch, tmp_path):
    """Not traced: cards that are larger than one that fits, and cards with less memory than the parameters."""
    (tmp_path / "train.py").touch()
    monkeypatch.chdir(tmp_path)
    traced = []

    def fake_traces(jobs, place, shown):
        return [fake_traced(job) for job in jobs]

    def fake_traced(job):
        traced.extend(job["cards"])
        cards = [card_prediction(name, GROUPS[name]) for name in job["cards"]]
        shares = PeakParts(params_gib=20.0, grads_gib=15.0, optimizer_gib=15.0, buffers_gib=0.0, activations_gib=5.0)
        return ScriptPrediction.model_construct(cards=tuple(cards), ranks=1, at_peak=shares)

    monkeypatch.setattr(tracing, "_trace_rank", fake_traces)
    messages: list[str] = []
    found = trace_script(
        ["python", "train.py"], list(GROUPS), messages.append, ScriptOptions(), only_smallest_card=True
    )
    assert set(traced) == set(GROUPS) - {"v100_16gb"}
    assert smallest_card(found) == "mi210_64gb"
    assert "smallest that fits so far: " in messages[-1]
    traced.clear()
    trace_script(["python", "train.py"], list(GROUPS), messages.append, ScriptOptions())
    assert set(traced) == set(GROUPS)
