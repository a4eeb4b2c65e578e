"""LitGPT's model in Lightning's Trainer, in miniature: in this process, and on two ranks that talk over gloo."""

import math
import os
import socket
import subprocess
import sys

import pytest

from experiments.errors import InputError
from experiments.result import MEASURED_FILE, Measured
from experiments.training import rank
from experiments.training.litgpt_models import TARGETS
from tests.experiments.training.house import LORA, NF4, shots
from tests.experiments.training.house import spec as any_spec

ADAPTED = LORA | {"targets": list(TARGETS)}
RANKS_END_WITHIN_S = 240


def spec(**changes):
    common = {"engine": "litgpt_trainer", "model": "open-llama-7b", "dataset": "constant", "max_length": 32}
    return any_spec(**common | changes)


def run_two_ranks(spec, folder):
    """What each of two processes measured, started like torchrun starts them."""
    (folder / "spec.json").write_text(spec.model_dump_json())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(2):
        (out := folder / str(number)).mkdir()
        ranks = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "experiments.training.rank", str(folder / "spec.json"), str(out)]
        environment = os.environ | {name: str(value) for name, value in ranks.items()}
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=RANKS_END_WITHIN_S)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return [Measured.model_validate_json((folder / str(number) / MEASURED_FILE).read_bytes()) for number in range(2)]


@pytest.mark.parametrize(
    "changes", [{}, {"accumulate": 2}, {"precision": "bf16-true"}, {"precision": "bf16-mixed"}, {"lora": ADAPTED}]
)
def test_one_device_trains_to_its_end(tmp_path, changes):
    measured = rank.run(spec(**changes), tmp_path)
    assert measured.reason.startswith("fits")
    assert len(measured.losses) == measured.speed.micro_steps == 6
    assert all(math.isfinite(loss) for loss in measured.losses)


def test_both_engines_compute_the_same_loss(tmp_path):
    first, second = (
        rank.run(spec(engine=engine, warmup_steps=1), tmp_path).losses for engine in ("litgpt", "litgpt_trainer")
    )
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    assert first[0] != first[1]


@pytest.mark.parametrize(("strategy", "share"), [("ddp", 1), ("fsdp", 1 / 2)])
def test_two_ranks_train_on_shares_of_the_data(tmp_path, strategy, share):
    first, second = run_two_ranks(spec(devices=2, strategy=strategy), tmp_path)
    assert first.reason.startswith("fits")
    assert second.reason.startswith("fits")
    assert first.parameters == second.parameters
    assert len(first.losses) == len(second.losses) == 3
    assert all(math.isfinite(loss) for loss in first.losses + second.losses)
    assert first.losses[0] != second.losses[0]
    whole = 4 * first.parameters
    for measured in (first, second):
        assert max(shots(measured.memory, "before forward", "params_gib")) == pytest.approx(share * whole, rel=0.01)
        assert max(shots(measured.memory, "after backward", "grads_gib")) == pytest.approx(share * whole, rel=0.01)
        kept = max(shots(measured.memory, "after optimizer step", "optimizer_gib"))
        assert kept == pytest.approx(2 * share * whole, rel=0.01)


def test_quantized_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"^quantization is not run by the litgpt_trainer engine; allowed: the engine"):
        rank.run(spec(lora=ADAPTED, quantization=NF4), tmp_path)
