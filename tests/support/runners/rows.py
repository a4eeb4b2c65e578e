"""Machines, rows and runs for tests of the runners."""

from pathlib import Path
from typing import Any

from experiments.results.run_folder import RunFolder
from experiments.runners.plan import PlannedRow
from experiments.suites.row_spec import RowSpec
from provision.models import Gpu, Node
from tests.support.results import in_memory

GPU = Gpu(index=0, name="NVIDIA A100-SXM4-80GB", memory_gib=79.3, uuid="GPU-0")
T4 = Gpu(index=0, name="NVIDIA T4", memory_gib=14.6, uuid="GPU-1")


def node(*gpus: Gpu, cpus: int = 2, host_memory_gib: float = 64.0) -> Node:
    return Node("a machine of the tests", gpus, cpus, host_memory_gib, "processor")


def spec(row: str = "a", **changes: Any) -> RowSpec:
    """Return a row of the suite 'lab'; ``changes`` are settings, or fields of the spec."""
    own = {key: changes.pop(key) for key in tuple(changes) if key in RowSpec.model_fields and key != "model"}
    suite = in_memory.suite([{"id": row, "settings": {"batch_size": 2, **changes}}])
    return in_memory.run(row).spec(suite, row).model_copy(update=own)


def folder(path: Path, *rows: str, **changes: Any) -> RunFolder:
    """Return the folder of a run in ``path``, without results."""
    made = RunFolder(path)
    made.write_run(in_memory.run(*rows, **changes))
    return made


def rows_to_run(*specs: RowSpec) -> list[PlannedRow]:
    return [PlannedRow(one, True, "no result yet") for one in specs]


OFFLOAD = {"model": "blip2-flan-t5-xxl", "optimizer": "deepspeed_cpu", "strategy": "deepspeed_stage_2_offload"}
ON_CPU = {"task": "generate", "engine": "hf_trainer", "model": "gpt-neo-1.3b", "accelerator": "cpu"}
