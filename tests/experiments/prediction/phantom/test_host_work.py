"""Work of the host is logged: views that FSDP replaces, checkpointed functions, and micro-steps of the Trainer."""

import json
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp._flat_param import FlatParamHandle
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint

from experiments.prediction import tracer
from experiments.prediction.phantom import host_work, ranks
from experiments.prediction.phantom.host_work import (
    log_checkpoints,
    log_checkpoints_of_deepspeed,
    log_steps_of_trainer,
    log_view_replacements_of_fsdp,
)
from experiments.prediction.times.operations import parse
from experiments.training import rank
from tests.benchmarks.forks import run_in_fork
from tests.benchmarks.training.rank_hosts.fitting import VIEWS
from tests.support.training.tiny_rows import LLAMA, spec

UNITS, PARAMETERS = 3, 2
"""Units of FSDP in the model, and parameters of each."""


class Log:
    """A device that keeps the keys of its operations."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def log_operation(self, key: str) -> None:
        self.keys.append(key)

    def ignore_gpu_numbers(self) -> None:
        pass


def logged_views(synchronize: bool) -> list[str]:
    """Return the keys that a step of a model of three units logs on one of two ranks."""
    log: Any = Log()
    log_view_replacements_of_fsdp(log)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(UNITS)))
    policy, device = ModuleWrapPolicy({nn.Linear}), torch.device("cpu")
    model = FullyShardedDataParallel(layers, auto_wrap_policy=policy, device_id=device, use_orig_params=True)
    log.keys.clear()
    with nullcontext() if synchronize else model.no_sync():
        model(torch.ones(2, 4)).sum().backward()
    return list(log.keys)


@pytest.mark.parametrize("synchronize", [True, False])
def test_the_views_of_each_unit_are_logged_with_the_number_of_its_parameters(synchronize: bool) -> None:
    keys = run_in_fork(logged_views, synchronize)
    assert keys == [json.dumps(["host::views", PARAMETERS])] * (VIEWS * UNITS)
    assert parse(keys[0]).family == "views"


def grad_modes_in_methods() -> list[bool]:
    """Return whether gradients are enabled in two methods of FSDP's that say so, if two devices log their calls."""
    found: list[bool] = []
    for name in ("_use_unsharded_views", "_use_sharded_views"):
        mode = torch.enable_grad if name == "_use_unsharded_views" else torch.no_grad
        setattr(FlatParamHandle, name, mode()(lambda _: found.append(torch.is_grad_enabled())))
    for _ in range(2):
        log_view_replacements_of_fsdp(Log())  # type: ignore[arg-type]
    handle: Any = SimpleNamespace(flat_param=SimpleNamespace(_param_infos=[]))
    with torch.no_grad():
        FlatParamHandle._use_unsharded_views(handle)
    with torch.enable_grad():
        FlatParamHandle._use_sharded_views(handle)
    return found


def test_decorators_of_logged_methods_stay() -> None:
    assert run_in_fork(grad_modes_in_methods) == [True, False]


def views_of_simulated_ranks(folder: Path) -> bool:
    """Return whether the simulation of two ranks logs the views on its device."""
    log: Any = Log()
    logged: list[Any] = []
    setattr(ranks, "log_view_replacements_of_fsdp", logged.append)  # noqa: B010 - in a fork
    ranks.simulate_ranks(2, 1, log, folder)
    return logged == [log]


def test_simulated_ranks_log_the_views(tmp_path: Path) -> None:
    assert run_in_fork(views_of_simulated_ranks, tmp_path)


def logged_checkpoints(use_reentrant: bool) -> list[str]:
    """Return the keys that the last of two devices logs in a step in which two of three layers are checkpointed."""
    earlier: Any = Log()
    log: Any = Log()
    log_checkpoints(earlier)
    log_checkpoints(log)
    layers = [nn.Linear(4, 4) for _ in range(3)]
    result = layers[0](torch.ones(2, 4))
    for layer in layers[1:]:
        result = checkpoint(layer, result, use_reentrant=use_reentrant)
    result.sum().backward()
    assert all(layer.weight.grad is not None for layer in layers)
    assert not earlier.keys
    return list(log.keys)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_each_checkpointed_function_is_logged_once(use_reentrant: bool) -> None:
    keys = run_in_fork(logged_checkpoints, use_reentrant)
    assert keys == [json.dumps(["host::checkpoint"])] * 2
    assert parse(keys[0]).family == "checkpoints"


def keys_of_trainer(folder: Path, own_loss: bool) -> list[str]:
    """Return the keys that the last of two devices logs in two steps, each of two micro-steps, of the Trainer.

    own_loss: whether a subclass computes the loss, without the method of the Trainer.
    """
    from transformers import Trainer, TrainingArguments

    class Model(nn.Module):
        """Model with one layer, which returns its loss."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.layer(features).sum()}

    earlier: Any = Log()
    log: Any = Log()
    log_steps_of_trainer(earlier)
    log_steps_of_trainer(log)
    arguments = TrainingArguments(str(folder), max_steps=2, gradient_accumulation_steps=2, use_cpu=True, report_to=[])
    data: Any = [{"features": torch.ones(4)} for _ in range(64)]

    class LossTrainer(Trainer):
        """Trainer with a loss of its own."""

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            return 2 * model(**inputs)["loss"]

    (LossTrainer if own_loss else Trainer)(Model(), arguments, train_dataset=data).train()
    assert not earlier.keys
    return list(log.keys)


@pytest.mark.parametrize("own_loss", [False, True])
def test_each_micro_step_of_the_trainer_logs_the_modules_of_the_model(tmp_path: Path, own_loss: bool) -> None:
    keys = run_in_fork(keys_of_trainer, tmp_path, own_loss)
    assert keys == [json.dumps(["host::modules", 2])] * 4
    assert parse(keys[0]).family == "modules"


class RowStarted(Exception):
    """The tracer has begun to train a row."""


def traced_row_logs_steps(engine: str) -> bool:
    """Return whether the trace of a row of this engine logs the steps of the Trainer on its device."""
    phantom, logged = MagicMock(), list[Any]()

    def start(*_: Any) -> None:
        raise RowStarted

    setattr(host_work, "log_steps_of_trainer", logged.append)  # noqa: B010 - in a fork
    setattr(rank, "run_rank", start)  # noqa: B010
    with suppress(RowStarted):
        tracer.trace(spec(engine=engine, model=LLAMA, dataset="constant"), ["a100_80gb"], phantom)
    return logged == [phantom]


@pytest.mark.parametrize(("engine", "logs"), [("hf_trainer", True), ("lightning", False)])
def test_a_traced_row_logs_the_steps_of_the_trainer(engine: str, logs: bool) -> None:
    assert run_in_fork(traced_row_logs_steps, engine) is logs


def logged_checkpoints_of_deepspeed(name: str) -> list[str]:
    """Return the keys that the last of two devices logs, if two of three layers are checkpointed by DeepSpeed."""
    from deepspeed import checkpointing

    log: Any = Log()
    log_checkpoints_of_deepspeed(Log())  # type: ignore[arg-type]
    log_checkpoints_of_deepspeed(log)
    layers = [nn.Linear(4, 4) for _ in range(3)]
    result = layers[0](torch.ones(2, 4))
    for layer in layers[1:]:
        result = getattr(checkpointing, name)(layer, result)
    result.sum().backward()
    assert all(layer.weight.grad is not None for layer in layers)
    return list(log.keys)


@pytest.mark.parametrize("name", ["checkpoint", "non_reentrant_checkpoint"])
def test_each_function_that_deepspeed_checkpoints_is_logged_once(name: str) -> None:
    pytest.importorskip("deepspeed")
    assert run_in_fork(logged_checkpoints_of_deepspeed, name) == [json.dumps(["host::checkpoint"])] * 2
