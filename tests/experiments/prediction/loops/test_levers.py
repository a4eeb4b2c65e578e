"""Options of `testbed predict --model --loop` that save GPU memory: what each keeps out of the memory of the GPU."""

import json
from importlib.util import find_spec
from shutil import which

import pytest

from experiments.prediction.custom import CustomTraining
from experiments.prediction.loop import program_command
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.trace import trace_script
from experiments.system.files import GIB
from tests.experiments.prediction.loops.test_generate import CONFIG, LAYERS, WIDTH

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (find_spec("torch") and which("c++")), reason="needs torch and a C++ compiler"),
]
BATCH, TOKENS = 8, 128
HIDDEN_STATE_GIB = BATCH * TOKENS * WIDTH * 4 / GIB


WORDS, MANY_TOKENS = 4000, 4096
LOGITS_GIB = MANY_TOKENS * WORDS * 4 / GIB


@pytest.fixture
def peak_parts(tmp_path, capfd, traces_start_warm):
    """Return the GiB of each part of the memory at the peak, for a loop with these options."""
    path = tmp_path / "tiny.json"

    def trace(loop, config=CONFIG, **changes):
        path.write_text(json.dumps(config))
        options = {"batch": BATCH, "seq": TOKENS} | changes
        training = CustomTraining(str(path), card="a100_80gb", loop=loop, **options)
        (found,) = trace_script(program_command(training), [training.card], lambda _: None, ScriptOptions())
        capfd.readouterr()
        return found.at_peak

    return trace


@pytest.mark.parametrize("loop", ["plain", "trainer"])
def test_offloaded_activations_take_no_memory_of_the_gpu(peak_parts, loop):
    kept, offloaded = peak_parts(loop), peak_parts(loop, activation_offload=True)
    assert kept.activations_gib - offloaded.activations_gib > LAYERS * HIDDEN_STATE_GIB


@pytest.mark.parametrize("loop", ["plain", "trainer"])
def test_adamw_on_the_host_keeps_its_averages_in_host_memory(peak_parts, loop):
    on_gpu, on_host = peak_parts(loop), peak_parts(loop, optim="adamw_cpu")
    assert on_gpu.optimizer_gib >= 1.99 * on_gpu.params_gib
    assert on_host.optimizer_gib == 0


def test_an_optimizer_step_in_the_backward_pass_keeps_no_gradients(peak_parts):
    options = {"batch": 1, "seq": 8}
    before, after = peak_parts("plain", **options), peak_parts("plain", optimizer_in_backward=True, **options)
    assert before.grads_gib >= 0.99 * before.params_gib
    assert after.grads_gib < 0.5 * before.grads_gib


@pytest.mark.parametrize("loop", ["plain", "trainer"])
def test_the_chunked_loss_keeps_neither_all_logits_nor_all_log_probabilities(peak_parts, loop):
    options = {"config": CONFIG | {"vocab_size": WORDS}, "batch": MANY_TOKENS // TOKENS}
    whole, chunked = peak_parts(loop, **options), peak_parts(loop, chunked_loss=True, **options)
    assert whole.activations_gib - chunked.activations_gib > 2 * LOGITS_GIB
