"""Write the results of rows that were rejected, or whose process wrote no result."""

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
from provision.files import read_text
from provision.models import Gpu, Node


def write_rejected_result(row_folder: Path, spec: RowSpec, node: Node, reason: str) -> Result:
    """Write and return the result of a row that was rejected before it started."""
    return _write_result(
        row_folder,
        spec,
        outcome="rejected",
        reason=reason,
        device=device_of(node, node.gpus[: min(1, spec.settings.gpus)]),
    )


def write_failed_result(
    row_folder: Path, spec: RowSpec, device: Device, outcome: Outcome, reason: str, elapsed_s: float
) -> Result:
    """Write and return the result of a row whose processes ended without one.

    The result has the row's last progress report and the end of its log. device: the device to record if the row did
    not report one. elapsed_s: seconds from the row's start to its end.
    """
    progress = read_progress(row_folder)
    failure = Failure(
        phase=progress.phase if progress else "load",
        step=progress.step if progress else None,
        kind="the row's processes ended" if outcome == "error" else "time limit",
        message=most_informative_line(row_folder),
        where=location_in_log(_log_text(row_folder)),
        log=last_lines(_log_text(row_folder)),
    )
    return _write_result(
        row_folder,
        spec,
        outcome=outcome,
        reason=reason,
        failure=failure,
        device=(progress and progress.device) or device,
        memory=progress.memory if progress else Memory(),
        elapsed_s=elapsed_s,
    )


def most_informative_line(row_folder: Path) -> str:
    """Return the most informative line of log.txt, or of notebook.log if log.txt is empty; else 'no output'."""
    return error_line(_log_text(row_folder), "no output")


def _log_text(row_folder: Path) -> str:
    paths = [row_folder / name for name in (LOG_FILE, NOTEBOOK_LOG)]
    printed = (read_text(path, errors="replace") for path in paths if path.exists())
    return next((text for text in printed if text.strip()), "")


def _write_result(row_folder: Path, spec: RowSpec, elapsed_s: float = 0.0, **measured: Any) -> Result:
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
    """Return the device to record in the result of a row on these GPUs of ``node``; the CPU if there are none."""
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
