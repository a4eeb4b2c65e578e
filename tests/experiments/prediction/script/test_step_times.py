"""The time of an optimizer step of unchanged scripts and of `--model`, predicted from a table of a few round times."""

import json

import pytest

from experiments.prediction.custom import CustomTraining
from experiments.prediction.loop import program_command
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.trace import trace_script
from experiments.prediction.times.limits import KERNEL_START_S, attainable_s
from experiments.prediction.times.operations import parse
from experiments.prediction.times.phase import ADAM_PARAMETERS_PER_S, HOST_FACTORS, LINK_SHARE, PCIE_GB_S
from experiments.prediction.times.step import SAME_CHIP_ERROR, SHARED_ERROR
from experiments.suites.cards import card_named
from tests.experiments.prediction.script.test_trace import DDP, LOOP, MIB, START
from tests.support.processes.phantom_library import cache_with_library

CARDS = ["a100_40gb", "a100_80gb"]
"""The table is of the second card; the first one has the same arithmetic and less bandwidth."""
MACHINE = {"card": "a100_80gb", "gpu": "A GPU", "host": "", "torch": "2", "command": "", "date": "2026-11-30"}
FLOAT = {"type": "Float", "sizes": [1024, 1024]}
HOST_S, SLOWDOWN = 1e-6, 3.0
"""Seconds of the host for each operation of the table; time of a matrix product divided by its attainable time."""
DEEPSPEED = "deepspeed.runtime.activation_checkpointing"
SMALL_BATCH = LOOP.replace("8192", "64")
"""The loop with a batch that the host limits."""


@pytest.fixture
def use_table(tmp_path, monkeypatch, trace):
    """Return a function that writes the user's own table: matrix products, and operations limited by the bandwidth."""

    def write(host_s: float = HOST_S) -> None:
        cache = cache_with_library(tmp_path / "cache") if not (tmp_path / "cache").exists() else tmp_path / "cache"
        monkeypatch.setenv("TESTBED_CACHE", str(cache))
        card = card_named(MACHINE["card"])
        copy_s = KERNEL_START_S + 3 * 4 * 1024**2 / (card.bandwidth_gb_s * 1e9)
        names = {
            "aten::mm.out": product_s(1024, 1024, 1024),
            "aten::add.out": copy_s,
            "aten::_foreach_add_.List": copy_s,
        }
        names |= {"aten::mean.out": copy_s}
        lines = [
            {"key": json.dumps([name, FLOAT, FLOAT, FLOAT], separators=(",", ":")), "device_s": time, "host_s": host_s}
            for name, time in names.items()
        ]
        (cache / "times").mkdir(exist_ok=True)
        (cache / "times" / "a100_80gb.jsonl").write_text("\n".join(map(json.dumps, [MACHINE, *lines])))

    return write


@pytest.fixture
def step(use_table, trace):
    """Return a function that traces a script, and returns the times of its step on both cards."""

    def step(source: str, *words: str, host_s: float = HOST_S, **options):
        use_table(host_s)
        predictions = trace(source, *words, cards=CARDS, **options)
        return [{card.card: card.time for card in one.cards}[name] for one in predictions for name in CARDS]

    return step


def product_s(rows: int, columns: int, depth: int) -> float:
    sizes = ([rows, depth], [depth, columns], [rows, columns])
    key = json.dumps(["aten::mm.out", *({"type": "Float", "sizes": size} for size in sizes)])
    return SLOWDOWN * attainable_s(parse(key), card_named("a100_80gb"))


def products_s(steps: int) -> float:
    """Return the seconds of the products: of both layers, and of the gradients of weights and activations."""
    return steps * (3 * product_s(8192, 1024, 1024) + 2 * product_s(1024, 1024, 8192))


def test_a_step_contains_the_matrix_products_of_its_forward_and_backward_passes(step):
    slow, fast = step(LOOP)
    assert fast.device_s["matrix products"] == pytest.approx(products_s(1))
    assert fast.step_s == pytest.approx(sum(fast.device_s.values()))
    assert fast.limited_by == "GPU: matrix products"
    assert {*fast.device_s} == {"matrix products", "element-wise", "reductions"}
    assert slow.device_s["matrix products"] == fast.device_s["matrix products"]
    assert (slow.measured_on, fast.unmeasured_share) == ("A GPU", pytest.approx(1.0))


def test_accumulation_multiplies_the_matrix_products_but_not_the_optimizer_step(step):
    loop = LOOP.replace("foreach=False", "foreach=True")
    (_, once), (_, often) = step(loop), step(loop.replace("optimizer.step()", "step % 4 == 3 and optimizer.step()"))
    assert often.device_s["matrix products"] == pytest.approx(products_s(4))
    assert often.device_s["optimizer"] == pytest.approx(once.device_s["optimizer"])


def test_the_time_of_a_step_limited_by_bandwidth_depends_on_the_bandwidth_of_the_card(step):
    slow, fast = step(LOOP.replace("model(batch)", "(model[0](batch) + (batch + 1).sin().cos().exp().add(1))"))
    ratio = card_named("a100_80gb").bandwidth_gb_s / card_named("a100_40gb").bandwidth_gb_s
    slow_s, fast_s = slow.device_s["element-wise"], fast.device_s["element-wise"]
    starts_s = (slow_s - ratio * fast_s) / (1 - ratio)
    assert starts_s / KERNEL_START_S == pytest.approx(round(starts_s / KERNEL_START_S), abs=1e-3)
    assert 0 < starts_s < 0.2 * fast_s


def test_operations_of_a_step_that_the_host_limits_take_twice_as_long_on_a_host_twice_as_slow(step):
    (_, first), (_, second) = (step(SMALL_BATCH, host_s=host_s) for host_s in (4e-5, 8e-5))
    assert first.limited_by == "host"
    layers_s = 2 * HOST_FACTORS["layers"]
    assert second.step_s - layers_s == pytest.approx(2 * (first.step_s - layers_s))
    assert second.step_s == pytest.approx(second.host_s)


def test_the_first_step_is_not_the_predicted_one_because_it_creates_the_optimizer_state(step):
    (_, second), (_, fourth) = (step(LOOP, host_s=0.001, steps=steps) for steps in (2, 4))
    assert second.host_s == pytest.approx(fourth.host_s)
    assert second.device_s == pytest.approx(fourth.device_s)


def test_a_step_contains_the_steps_of_all_optimizers_even_of_those_in_the_backward_pass(step):
    two = (
        START
        + """
optimizers = [torch.optim.SGD([one], lr=1.0) for one in model.parameters()]
while True:
    for optimizer in optimizers:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
"""
    )
    inside = (
        START
        + """
optimizers = {one: torch.optim.SGD([one], lr=1.0, momentum=0.9) for one in model.parameters()}
for one in model.parameters():
    one.register_post_accumulate_grad_hook(lambda one: optimizers[one].step() or optimizers[one].zero_grad())
while True:
    model(batch).square().mean().backward()
"""
    )
    assert step(two)[1].device_s["matrix products"] == pytest.approx(products_s(2))
    assert step(inside)[1].device_s["matrix products"] == pytest.approx(products_s(1))


def test_the_backward_pass_continues_after_an_optimizer_step_inside_of_it(step):
    source = (
        START
        + """
optimizer = torch.optim.SGD([model[2].weight], lr=1.0)
def update(*_):
    optimizer.step()
    optimizer.zero_grad()
if "inside" in sys.argv:
    model[2].weight.register_post_accumulate_grad_hook(update)
while True:
    model(batch).square().mean().backward()
    if "inside" not in sys.argv:
        update()
"""
    )
    (_, inside), (_, after) = (step(source, *words, host_s=0.001) for words in (["inside"], []))
    assert inside.host_s == pytest.approx(after.host_s, rel=0.05)


def test_the_time_of_a_triton_kernel_follows_from_the_bytes_of_its_tensors(step):
    source = "import triton\n@triton.jit\ndef kernel(values, count, out):\n    pass\n" + LOOP
    kernel = source.replace("    optimizer.step()", "    kernel[(7,)](batch, 3, out=batch)\n    optimizer.step()")
    without, launched = (step(one)[1].device_s["element-wise"] for one in (source, kernel))
    attainable = KERNEL_START_S + 2 * 32 * MIB / (card_named("a100_80gb").bandwidth_gb_s * 1e9)
    assert launched - without == pytest.approx(attainable, rel=0.01)


def test_an_update_of_8_bit_adam_takes_at_least_the_time_to_read_its_state(step):
    loop = LOOP.replace("torch.optim.Adam(model.parameters(), foreach=False)", "bnb.optim.Adam8bit(model.parameters())")
    time = step("import bitsandbytes as bnb\n" + loop)[1]
    state_bytes = 2 * 1024**2 * (4 + 4 + 1 + 1)
    assert time.device_s["optimizer"] > state_bytes / (card_named("a100_80gb").bandwidth_gb_s * 1e9)


def test_an_optimizer_in_host_memory_needs_cpu_time_for_each_parameter_and_raises_the_stated_error(step):
    source = """
import torch
weight = torch.nn.Parameter(torch.zeros(4096, 1024))
optimizer = torch.optim.AdamW([weight], fused=True)
while True:
    optimizer.zero_grad()
    weight.cuda().square().mean().backward()
    optimizer.step()
"""
    time = step(source)[1]
    assert time.cpu_optimizer_s == pytest.approx(4096 * 1024 / ADAM_PARAMETERS_PER_S)
    assert time.device_s["host transfers"] > 0
    assert time.error_share == pytest.approx(SAME_CHIP_ERROR + SHARED_ERROR)


def test_transfers_from_and_to_the_host_raise_the_stated_error_of_a_time(step):
    source = LOOP.replace("model(batch)", "(model(batch) + sum(batch.cpu().cuda() for _ in range(100)))")
    assert step(source)[1].error_share == pytest.approx(SAME_CHIP_ERROR + SHARED_ERROR)
    assert step(LOOP)[1].error_share == pytest.approx(SAME_CHIP_ERROR)


def test_only_a_training_with_several_ranks_needs_time_to_transfer_gradients_over_the_link(step):
    first, *_, last = step(DDP, before=("torchrun", "--nproc-per-node", "2"), all_ranks=True)
    assert first.link_s == last.link_s == pytest.approx(8 * MIB / (LINK_SHARE * PCIE_GB_S * 1e9), rel=0.01)
    assert last.error_share == pytest.approx(SAME_CHIP_ERROR + SHARED_ERROR)
    assert step(LOOP)[1].link_s == 0.0


@pytest.mark.parametrize(
    ("source", "options", "reason"),
    [
        (LOOP, {"steps": 1}, "a second optimizer step is needed, and the script took one before the trace ended"),
        (START + "model(batch)", {}, "a second optimizer step is needed, and the script took none before"),
        (LOOP.replace("optimizer =", "model = torch.compile(model)\noptimizer ="), {}, "torch.compile was called"),
        ("import torch\ntorch.set_float32_matmul_precision('high')\n" + LOOP, {}, "TF32 is on"),
    ],
)
def test_a_time_that_cannot_be_predicted_has_a_reason(traced, source, options, reason):
    one = traced(source, **options)
    assert one.cards[0].time is None
    assert one.time_unknown.startswith(reason)


def test_the_time_of_products_under_autocast_is_that_of_their_data_type_although_tf32_is_on(traced):
    source = LOOP.replace("model(batch)", "torch.autocast('cuda', torch.bfloat16)(model)(batch)")
    one = traced("import torch\ntorch.set_float32_matmul_precision('high')\n" + source, cards=["v100_32gb"])
    assert (one.cards[0].time, one.time_unknown) == (None, "")  # without bf16 arithmetic
    assert traced("import torch\ntorch.set_float32_matmul_precision('high')\n" + source).cards[0].time


@pytest.mark.parametrize("loop", ["plain", "trainer"])
def test_the_time_of_a_custom_training_grows_with_its_micro_steps(use_table, tmp_path, loop):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "llama", "vocab_size": 1000, **sizes}))
    use_table()
    times = []
    for accumulate in (1, 3):
        training = CustomTraining(str(config), CARDS[1], batch=2, seq=64, loop=loop, accumulate=accumulate)
        (one,) = trace_script(program_command(training), CARDS[1:], lambda _: None, ScriptOptions())
        times.append(one.cards[0].time)
    once, often = times
    assert once.limited_by == "host"
    assert once.host_s < once.step_s < once.host_s + sum(once.device_s.values())  # the host waits for values
    assert often.device_s["matrix products"] == pytest.approx(3 * once.device_s["matrix products"])
    assert often.step_s > 2 * once.step_s


def test_the_host_s_work_for_checkpoints_of_deepspeed_is_that_of_pytorch_s(step):
    def host_s(module: str, options: str) -> float:
        start = f"from {module} import checkpoint\n{START}batch = batch[:64].requires_grad_()\n"
        source = start + LOOP.removeprefix(START).replace("model(batch)", f"checkpoint(model, batch{options})")
        return step(source)[1].host_s

    difference_s = host_s(f"{DEEPSPEED}.checkpointing", "") - host_s("torch.utils.checkpoint", ", use_reentrant=True")
    assert abs(difference_s) < 0.3 * HOST_FACTORS["checkpoints"]


TRAINER = """
import torch
from transformers import Trainer, TrainingArguments

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1024, 1024)
        self.idle = torch.nn.ModuleList([torch.nn.Identity() for _ in range(MODULES)])

    def forward(self, features):
        return {"loss": self.layer(features).mean()}

arguments = TrainingArguments("out", max_steps=3, report_to=[])
data = [{"features": torch.ones(1024)} for _ in range(64)]
Trainer(Model(), arguments, train_dataset=data).train()
"""


def test_the_trainer_of_transformers_takes_host_time_for_each_module_of_the_model(step):
    few_s, many_s = (step(TRAINER.replace("MODULES", str(count)))[1].host_s for count in (1, 1001))
    assert many_s - few_s == pytest.approx(1000 * HOST_FACTORS["modules"], rel=0.01)
