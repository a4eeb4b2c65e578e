"""Text generation on the phantom device: weights, key-value cache, several GPUs, and a claim of the Slurm guide."""

import json
from importlib.util import find_spec
from shutil import which
from typing import Any

import pytest

from experiments.prediction.custom import CustomTraining
from experiments.prediction.loop import program_command
from experiments.prediction.predict import predict, suite_row_spec
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.trace import trace_script
from experiments.suites.suite import suite_named
from experiments.system.files import GIB, cache_folder

pytestmark = [
    pytest.mark.skipif(not (find_spec("torch") and which("c++")), reason="needs torch and a C++ compiler"),
]
LAYERS, WIDTH, BATCH, PROMPT, NEW = 4, 512, 3, 40, 6
CONFIG = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 1000,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
GCD = "mi250x_gcd_64gb"


@pytest.fixture
def generate(tmp_path, capfd, traces_start_warm):
    """Return the predictions of each GPU for the tiny model, with these options of `testbed predict`."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(CONFIG))
    options: dict[str, Any] = {
        "batch": BATCH,
        "seq": PROMPT,
        "new_tokens": NEW,
        "precision": "16-true",
        "card": "a100_80gb",
    }

    def trace(**changes):
        asked = CustomTraining(str(path), task="generate", **options | changes)
        found = trace_script(
            program_command(asked), [asked.card], lambda _: None, ScriptOptions(gpus=asked.gpus_per_process)
        )
        capfd.readouterr()
        return found

    return trace


def test_the_cache_has_keys_and_values_of_all_tokens_except_the_last(generate):
    (found,) = generate(new_tokens=80)
    cache = 2 * LAYERS * WIDTH * (PROMPT + 80 - 1) * BATCH * 2
    one_layer_is_copied = 1 / (2 * LAYERS)
    assert cache <= found.at_peak.cache_gib * GIB <= cache * (1 + one_layer_is_copied)
    assert found.at_peak.params_gib * GIB == pytest.approx(2 * found.parameters, rel=0.01)
    assert (found.steps, found.peak_phase, found.ended) == (0, "forward", "ended")
    (without,) = generate(no_kv_cache=True)
    assert without.at_peak.cache_gib == 0


def test_weights_and_cache_are_divided_between_two_gpus(generate):
    (alone,), shared = generate(), generate(devices=2)
    assert [(one.gpu, one.gpus, one.ranks) for one in shared] == [(0, 2, 1), (1, 2, 1)]
    assert sum(one.at_peak.params_gib for one in shared) == pytest.approx(alone.at_peak.params_gib, rel=0.01)
    assert max(one.at_peak.params_gib for one in shared) < 0.7 * alone.at_peak.params_gib
    for one in shared:
        assert one.at_peak.cache_gib == pytest.approx(alone.at_peak.cache_gib / 2, rel=0.3)


@pytest.mark.parametrize(("bits", "bytes_each"), [("8bit", 1), ("4bit", 0.5)])
def test_quantized_weights_take_less_memory_during_generation(generate, bits, bytes_each):
    (whole,), (found,) = generate(), generate(quantization=bits)
    embeddings = 2 * 1000 * WIDTH
    linear = whole.parameters - embeddings
    assert found.at_peak.params_gib * GIB == pytest.approx(bytes_each * linear + 2 * embeddings, rel=0.1)


@pytest.mark.slow
def test_30_billion_parameters_in_16_bit_fit_on_two_gcds_and_not_on_one():
    suite = suite_named("slurm_hf_trainer")
    specs = [suite_row_spec(suite, suite.row(row), GCD) for row in ("opt-30b-1gpu", "opt-30b-2gpu")]
    one, two = predict(specs, cache_folder())
    assert one.memory.snapshots[0].params_gib * GIB == pytest.approx(60e9, rel=0.01)
    assert one.needed_gib * GIB == pytest.approx(70e9, rel=0.05)
    assert (one.predicted_outcome, two.predicted_outcome) == ("oom", "fits")
    assert sum(two.memory.params_by_gpu_gib) == pytest.approx(one.memory.snapshots[0].params_gib, rel=0.01)
    assert max(two.memory.params_by_gpu_gib) == pytest.approx(two.at_peak.params_gib, rel=0.01)
