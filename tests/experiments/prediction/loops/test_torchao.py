"""torchao's AdamW in 4 and 8 bit: the memory of its compiled update, and predictions against runs on an H200.

tests/benchmarks/prediction/torchao_optimizers describes the runs.
"""

import json
import sys
import weakref
from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from shutil import which

import pytest

from experiments.cli.app import main
from experiments.errors import InputError
from experiments.prediction.custom import TORCHAO_OPTIMIZERS, CustomTraining
from experiments.prediction.loop import describe_training, program_command, single_changes, trace_options
from experiments.prediction.script import trace
from experiments.prediction.script.trace import trace_script
from experiments.system.files import CODE_FOLDER, GIB
from tests.benchmarks.prediction.torchao_optimizers.__main__ import CARD, MODELS, TOKENS
from tests.support.processes.warm_traces import start_warm, warm_traces
from tests.support.services.torchao_package import torchao_folder

needs_device = pytest.mark.skipif(not (find_spec("torch") and which("c++")), reason="needs torch and a C++ compiler")
EVIDENCE = CODE_FOLDER / "experiments" / "evidence" / "prediction_h200"
MEASURED = [json.loads(line) for line in (EVIDENCE / "torchao.jsonl").read_text().splitlines()]
TRAININGS = [one for one in MEASURED if "peak" in one]
MAX_ERROR = 0.005
BLOCKS = {"OptimState4bit": ("adamw_4bit", 128), "OptimState8bit": ("adamw_8bit_torchao", 256)}
"""The optimizer of each class of states, and the number of values that have a scale."""
EVENTS = {one["optim"]: one["events"] for one in MEASURED if "events" in one}
"""The recorded bytes of a parameter's update, negative if they are freed."""


class FakeState:
    """Fake of a quantized state of torchao, without memory."""

    def __init__(self, torch, block):
        self.scale = torch.empty(self.numel() // block, device="meta")

    def numel(self):
        return 32000 * 768


@pytest.fixture
def events(monkeypatch):
    """Record the bytes of tensors that are allocated, and of those that are freed as negative numbers."""
    torch = pytest.importorskip("torch")
    found = []

    def recorded(allocate):
        def allocate_recorded(*arguments, **options):
            tensor = allocate(*arguments, **options)
            found.append(tensor.nbytes)
            weakref.finalize(tensor, found.append, -tensor.nbytes)
            return tensor

        return allocate_recorded

    def start():
        for name in ("empty", "empty_like"):
            monkeypatch.setattr(torch, name, recorded(getattr(torch, name)))
        return found

    return start


def update(average, square, *others):
    from experiments.prediction.phantom.kernels.torchao_adam import CompiledUpdate

    replaced = []
    CompiledUpdate(lambda *_: replaced.append("torchao"))(None, None, None, average, square, *others)
    return replaced


@pytest.mark.parametrize("kind", BLOCKS)
def test_an_update_allocates_what_was_recorded_on_a_gpu(events, kind):
    torch = pytest.importorskip("torch")
    optim, block = BLOCKS[kind]
    states = [type(kind, (FakeState,), {})(torch, block) for _ in range(2)]
    found = events()
    assert update(*states, None) == []
    assert found == EVENTS[optim]


def test_states_that_are_not_quantized_are_updated_in_place(events):
    torch = pytest.importorskip("torch")
    states = [torch.zeros(8), torch.zeros(8)]
    found = events()
    assert update(*states, None) == found == []


def test_the_maximum_of_amsgrad_has_buffers_of_its_own(events):
    torch = pytest.importorskip("torch")
    states = [type("OptimState4bit", (FakeState,), {})(torch, 128) for _ in range(3)]
    found = events()
    update(*states)
    assert sum(size for size in found if size > 0) == 3 / 2 * sum(size for size in EVENTS["adamw_4bit"] if size > 0)


def test_states_of_another_kind_are_updated_by_torchaos_own_code(events):
    torch = pytest.importorskip("torch")
    states = [type("OptimStateFp8", (FakeState,), {})(torch, 256) for _ in range(2)]
    found = events()
    assert (update(*states, None), found) == (["torchao"], [])


@pytest.fixture
def installed(monkeypatch):
    """Make torchao importable in this process and in traces."""
    folder = str(torchao_folder())
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder)


@pytest.fixture(scope="module")
def start_with_torchao(tmp_path_factory):
    """Return a function that starts a trace as a fork of a process that can import torchao, started if it is needed."""
    with ExitStack() as stack:
        socket = cache(lambda: stack.enter_context(warm_traces(tmp_path_factory.mktemp("warm"), [torchao_folder()])))
        yield lambda *arguments, **options: start_warm(socket(), *arguments, **options)


@pytest.fixture
def torchao_traces_start_warm(installed, start_with_torchao, monkeypatch):
    monkeypatch.setattr(trace, "process_group", start_with_torchao)


@pytest.fixture
def not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setattr("experiments.prediction.loop.find_spec", lambda _: None)


@pytest.mark.usefixtures("not_installed")
@pytest.mark.parametrize("optim", TORCHAO_OPTIMIZERS)
@pytest.mark.parametrize("loop", ["trainer", "plain"])
def test_without_torchao_an_error_names_the_package_and_an_alternative(optim, loop, capsys):
    question = ["predict", "--model", "tiny-llama-1.1b", "--card", CARD, "--loop", loop, "--optim", optim]
    assert main(question) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"--optim {optim}: needs the package torchao, which is not installed" in message
    assert "pip install torchao; without it, adamw_8bit" in message


@pytest.mark.parametrize("loop", ["lightning", "litgpt"])
def test_the_loops_of_the_labs_have_no_optimizer_of_torchao(loop):
    training = CustomTraining("tiny-llama-1.1b", card=CARD, loop=loop, optim="adamw_4bit")
    with pytest.raises(InputError, match=f"--optim adamw_4bit: with --loop {loop}, allowed: adamw, sgd"):
        program_command(training)


@pytest.mark.parametrize("found", [True, False])
def test_fit_suggests_4_bit_if_torchao_is_installed(monkeypatch, found):
    monkeypatch.setattr("experiments.prediction.loop.find_spec", lambda _: found or None)
    training = CustomTraining("tiny-llama-1.1b", card=CARD)
    changes = dict(single_changes(training))
    assert ("4-bit AdamW of torchao" in changes) == found
    for optim in TORCHAO_OPTIMIZERS if found else ():
        names = dict(single_changes(CustomTraining("tiny-llama-1.1b", card=CARD, optim=optim))).keys()
        assert not {"8-bit AdamW", "4-bit AdamW of torchao", "AdamW on the host"} & names
        assert "SGD" in names


@pytest.mark.usefixtures("installed")
def test_torchao_cannot_update_in_the_backward_pass():
    training = CustomTraining(
        "tiny-llama-1.1b", card=CARD, loop="plain", optim="adamw_4bit", optimizer_in_backward=True
    )
    with pytest.raises(InputError, match="another --optim than adamw_cpu, adamw_4bit, adamw_8bit_torchao"):
        program_command(training)
    assert "optimizer in backward" not in dict(single_changes(training))


def predict(path, config, **options):
    path.write_text(json.dumps(config))
    training = CustomTraining(str(path), card=CARD, seq=TOKENS, **options)
    command = program_command(training)
    (found,) = trace_script(command, [CARD], lambda _: None, trace_options(training))
    return found, describe_training(training, found.sample)


@needs_device
@pytest.mark.usefixtures("torchao_traces_start_warm")
@pytest.mark.parametrize("case", TRAININGS, ids=lambda one: " ".join(map(str, one.values())))
def test_the_predicted_peak_is_the_measured_one(tmp_path, case):
    options = {name: case[name] for name in ("loop", "precision", "optim")}
    found, _ = predict(tmp_path / "config.json", MODELS[case["model"]], **options)
    assert found.peak_gib * GIB == pytest.approx(case["peak"], rel=MAX_ERROR)


@needs_device
@pytest.mark.usefixtures("torchao_traces_start_warm")
@pytest.mark.parametrize(("optim", "words", "bits"), [("adamw_4bit", "4 bit", 4), ("adamw_8bit_torchao", "8 bit", 8)])
def test_the_states_of_the_trainer_have_this_many_bits(tmp_path, optim, words, bits):
    config = MODELS["llama"] | {"num_hidden_layers": 2}
    found, description = predict(tmp_path / "config.json", config, loop="trainer", precision="bf16-true", optim=optim)
    assert f"torchao's AdamW in {words}" in description
    scales = 32 / {4: 128, 8: 256}[bits]
    assert found.at_peak.optimizer_gib / found.at_peak.params_gib == pytest.approx(2 * (bits + scales) / 16, rel=0.01)
    assert (found.optimizers, found.notes) == (("AdamW4bit",) if bits == 4 else ("AdamW8bit",), ())
    assert found.time_unknown == "torch.compile was called"
