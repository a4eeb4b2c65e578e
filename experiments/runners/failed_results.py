"""Results that the runner writes when a row's worker wrote none."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from experiments.results.provenance import code_sha256, git_commit, image, versions
from experiments.results.schema import (
    LOG_FILE,
    RESULT_FILE,
    Device,
    Failure,
    Memory,
    Outcome,
    Result,
    read_progress,
)
from experiments.runners.local.row_process import NOTEBOOK_LOG
from experiments.suites.cards import card_of_device
from experiments.suites.row_spec import RowSpec
from experiments.system.files import write_atomically
from experiments.system.logs import error_line, last_lines, location_in_log
from provision.models import Gpu, Node


def write_refusal(row_folder: Path, spec: RowSpec, node: Node, reason: str) -> Result:
    """Write and return the result of a row that was rejected before it started."""
    return _write(row_folder, spec, outcome="refused", reason=reason, device=device_of(node, node.gpus[:1]))


def write_broken(
    row_folder: Path, spec: RowSpec, device: Device, outcome: Outcome, reason: str, elapsed_s: float
) -> Result:
    """Write and return the result of a row whose processes ended without one.

    The result has the progress of the row and what its log says. device: used if the row has not reported
    its device.
    """
    progress = read_progress(row_folder)
    failure = Failure(
        phase=progress.phase if progress else "load",
        step=progress.step if progress else None,
        kind="the row's processes ended" if outcome == "error" else "time limit",
        message=telling_line_of(row_folder),
        where=location_in_log(_printed(row_folder)),
        log=last_lines(_printed(row_folder)),
    )
    return _write(
        row_folder,
        spec,
        outcome=outcome,
        reason=reason,
        failure=failure,
        device=(progress and progress.device) or device,
        memory=progress.memory if progress else Memory(),
        elapsed_s=elapsed_s,
    )


def telling_line_of(row_folder: Path) -> str:
    """Return the line that tells most of what the row, or else its notebook, printed; 'no output' if there is none."""
    return error_line(_printed(row_folder), "no output")


def _printed(row_folder: Path) -> str:
    paths = [row_folder / name for name in (LOG_FILE, NOTEBOOK_LOG)]
    printed = (path.read_text(errors="replace") for path in paths if path.exists())
    return next((text for text in printed if text.strip()), "")


def _write(row_folder: Path, spec: RowSpec, elapsed_s: float = 0.0, **measured: Any) -> Result:
    result = Result(
        spec=spec,
        fingerprint=spec.fingerprint,
        code=code_sha256(),
        versions=versions(),
        git_commit=git_commit(),
        image=image(),
        started_at=(datetime.now(UTC) - timedelta(seconds=elapsed_s)).isoformat(timespec="seconds"),
        elapsed_s=elapsed_s,
        **measured,
    )
    write_atomically(row_folder / RESULT_FILE, result.model_dump_json(indent=2))
    return result


def device_of(node: Node, gpus: Sequence[Gpu]) -> Device:
    """Return the device of a row with these GPUs of ``node``, as it is recorded in a result; without GPUs, the CPU."""
    gpu = gpus[0] if gpus else None
    return Device(
        kind="cuda" if gpu else "cpu",
        name=gpu.name if gpu else node.processor,
        count=max(1, len(gpus)),
        memory_gib=gpu.memory_gib if gpu else None,
        card=card_of_device(gpu.name, gpu.memory_gib) if gpu else None,
        host_cpus=node.cpus,
        host_memory_gib=node.host_memory_gib,
    )
