"""Stored runs of a suite with invented results."""

from pathlib import Path
from typing import Any

from experiments.results.memory_parts import STEP_POINTS
from experiments.results.run_folder import RunFolder
from experiments.results.schema import RESULT_FILE, Device, Measured, Memory, Outcome, Result, Speed
from experiments.suites.choices import Size
from experiments.suites.suite import suite_named
from tests.support.results.in_memory import CPU, EMULATING_GPU, SPEED, run, shot

MINIATURE = 1 / 1024
WAITS = {"communication_share": 0.4, "exposed_communication_share": 0.15, "gpu_idle_share": 0.05}


def stored_run(
    place: Path, name: str, card: str, *rows: str, run_id: str = "one", size: Size = "full", **choices: Any
) -> RunFolder:
    """Return the folder of a run in which each of ``rows`` (default: all rows for the card) has the stated outcome."""
    suite = suite_named(name)
    rows = rows or tuple(row.id for row in suite.rows_for(card))
    made = run(*rows, run_id=run_id, suite=name, card=card, size=size, **choices)
    folder = RunFolder(place / run_id)
    folder.write_run(made)
    for row in rows:
        spec = made.spec(suite, row)
        measured = [
            _measured(rank, suite.row(row).expect.outcome or "fits", size) for rank in range(spec.settings.ranks)
        ]
        several = tuple(measured) if len(measured) > 1 else ()
        fields = measured[-1].model_dump() | {"device": measured[-1].device.model_copy(update={"count": len(measured)})}
        write_result(folder, Result(**fields, ranks=several, spec=spec, fingerprint=spec.fingerprint, code="0" * 64))
    return folder


def write_result(folder: RunFolder, result: Result) -> None:
    """Write ``result`` into the folder of its row."""
    place = folder.row_folder(result.spec)
    place.mkdir(parents=True, exist_ok=True)
    (place / RESULT_FILE).write_text(result.model_dump_json())


def _measured(rank: int, outcome: Outcome, size: Size) -> Measured:
    """Return memory with 14 GiB of parameters, 14 of gradients, 28 of state, and 10 + ``rank`` of activations."""
    device: Device = EMULATING_GPU if size == "full" else CPU
    scale = 1.0 if size == "full" else MINIATURE
    held = {"params_gib": 14.0 * scale, "grads_gib": 14.0 * scale, "optimizer_gib": 28.0 * scale}
    peak = (66.0 + rank) * scale
    shots = [shot(point, **held, allocated_gib=56.0 * scale, peak_gib=peak) for point in STEP_POINTS]
    activations = {"activations_gib": (10.0 + rank) * scale, "allocated_gib": peak}
    shots[1] = shots[1].model_copy(update=activations)
    return Measured(
        rank=rank,
        outcome=outcome,
        reason=f"ended as {outcome}",
        device=device,
        memory=Memory(snapshots=tuple(shots), peak_gib=peak),
        speed=Speed(**SPEED | (WAITS if rank else {})) if outcome == "fits" else None,
        max_tokens=300 + rank,
    )
