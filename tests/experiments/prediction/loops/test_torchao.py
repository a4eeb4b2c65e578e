"""torchao's AdamW in 4 and 8 bit: the memory of its compiled update, and predictions against runs on an H200.

The runs trained two models for four steps in a plain loop, with PyTorch 2.11, torchao 0.18 and Triton 3.6. For one
step, the allocations inside the optimizer were recorded (torch.cuda.memory._record_memory_history).
"""

import json
import sys
import weakref
from importlib.util import find_spec
from shutil import which

import pytest

from experiments.cli.app import main
from experiments.errors import InputError
from experiments.prediction.custom import TORCHAO_OPTIMIZERS, CustomTraining
from experiments.prediction.loop import describe_training, program_command, single_changes, trace_options
from experiments.prediction.script.trace import trace_script
from experiments.system.files import GIB
from tests.support.services.torchao_package import torchao_folder

needs_device = pytest.mark.skipif(not (find_spec("torch") and which("c++")), reason="needs torch and a C++ compiler")
CARD = "h200_141gb"
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
QWEN = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
MEASURED = [
    (LLAMA, "bf16-true", "adamw_4bit", 1371510272),
    (LLAMA, "32-true", "adamw_8bit_torchao", 1637228032),
    (QWEN, "bf16-true", "adamw_4bit", 5888514560),
    (QWEN, "bf16-true", "adamw_8bit_torchao", 4178613248),
]
"""Model, precision, optimizer, and the peak of allocated memory in bytes."""
MAX_ERROR = 0.005
SCALES, VALUES, CODES = 768000, 98304000, 196608000
FREED = [-VALUES, -CODES, -SCALES]
EVENTS = {
    "OptimState4bit": (128, [SCALES, SCALES, VALUES, VALUES, CODES, CODES, *FREED, *FREED]),
    "OptimState8bit": (256, [SCALES // 2, SCALES // 2, VALUES, VALUES, -VALUES, -VALUES, -SCALES // 2, -SCALES // 2]),
}
"""Values of a scale, and the recorded events of a parameter of 32000 x 768 values: bytes, negative if freed."""


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


@pytest.mark.parametrize("kind", EVENTS)
def test_an_update_allocates_what_was_recorded_on_a_gpu(events, kind):
    torch = pytest.importorskip("torch")
    block, recorded = EVENTS[kind]
    states = [type(kind, (FakeState,), {})(torch, block) for _ in range(2)]
    found = events()
    assert update(*states, None) == []
    assert found == recorded


def test_states_that_are_not_quantized_are_updated_in_place(events):
    torch = pytest.importorskip("torch")
    states = [torch.zeros(8), torch.zeros(8)]
    found = events()
    assert update(*states, None) == found == []


def test_the_maximum_of_amsgrad_has_buffers_of_its_own(events):
    torch = pytest.importorskip("torch")
    block, recorded = EVENTS["OptimState4bit"]
    states = [type("OptimState4bit", (FakeState,), {})(torch, block) for _ in range(3)]
    found = events()
    update(*states)
    assert sum(size for size in found if size > 0) == 3 / 2 * sum(size for size in recorded if size > 0)


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
    training = CustomTraining(str(path), card=CARD, **options)
    command = program_command(training)
    (found,) = trace_script(command, [CARD], lambda _: None, trace_options(training, command))
    return found, describe_training(training, found.sample)


@needs_device
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("config", "precision", "optim", "peak"), MEASURED)
def test_the_predicted_peak_is_the_measured_one(tmp_path, config, precision, optim, peak):
    found, _ = predict(tmp_path / "config.json", config, loop="plain", precision=precision, optim=optim)
    assert found.peak_gib * GIB == pytest.approx(peak, rel=MAX_ERROR)


@needs_device
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("optim", "words", "bits"), [("adamw_4bit", "4 bit", 4), ("adamw_8bit_torchao", "8 bit", 8)])
def test_the_states_of_the_trainer_have_this_many_bits(tmp_path, optim, words, bits):
    config = LLAMA | {"num_hidden_layers": 2}
    found, description = predict(tmp_path / "config.json", config, loop="trainer", precision="bf16-true", optim=optim)
    assert f"torchao's AdamW in {words}" in description
    scales = 32 / {4: 128, 8: 256}[bits]
    assert found.at_peak.optimizer_gib / found.at_peak.params_gib == pytest.approx(2 * (bits + scales) / 16, rel=0.01)
    assert (found.optimizers, found.notes) == (("AdamW4bit",) if bits == 4 else ("AdamW8bit",), ())
    assert found.time_unknown == "torch.compile was called"
