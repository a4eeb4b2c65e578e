"""Suites, runs and results in memory, for tests of the code that uses them."""

from typing import Any

from experiments.results.run_folder import Run
from experiments.results.schema import Device, Measured, Memory, Outcome, Result, Snapshot, Speed
from experiments.suites.suite import Suite

CARD = "a100_80gb"
COMMON: dict[str, Any] = {
    "engine": "lightning",
    "dataset": "gourmetgram-captions",
    "model": "blip2-opt-2.7b",
    "precision": "bf16-true",
    "optimizer": "adamw",
    "lr": 1.0e-4,
    "max_epochs": 1,
    "max_length": 50,
    "workers": 0,
    "time_limit_s": 60,
}
GPU = Device(kind="cuda", name="NVIDIA A100-SXM4-80GB", memory_gib=79.15, card=CARD, host_cpus=8, host_memory_gib=64.0)
EMULATING_GPU = GPU.model_copy(
    update={"name": "NVIDIA H200", "memory_gib": 139.8, "card": "h200_141gb", "cap_gib": 78.6}
)
CPU = Device(kind="cpu", name="processor", host_cpus=2, host_memory_gib=8.0)


def suite(rows: list[dict[str, Any]] | None = None, claims: list[dict[str, Any]] | None = None) -> Suite:
    """Return a suite named 'lab' with these rows (default: rows a and b, expected to fit) and claims."""
    rows = rows or [{"id": "a", "expect": {"outcome": "fits"}}, {"id": "b", "expect": {"outcome": "fits"}}]
    return Suite.model_validate(
        {
            "suite": "lab",
            "version": 1,
            "title": "Lab",
            "source": "made up",
            "cards": [CARD],
            "common": COMMON,
            "rows": [{"title": row["id"].upper(), "settings": {"batch_size": 2}, **row} for row in rows],
            "claims": claims or [],
        }
    )


def run(*rows: str, **changes: Any) -> Run:
    """Return a run of ``rows`` (default: a and b) of the suite 'lab'."""
    choices: dict[str, Any] = {
        "run_id": "20261121-1200-lab",
        "suite": "lab",
        "recipe_version": 1,
        "rows": rows or ("a", "b"),
        "site": "local",
        "card": CARD,
        "size": "full",
        "length": "as-taught",
        "weights": "pretrained",
        "data": "captions",
        "input": "as-taught",
        "command": "testbed run lab",
        "started_at": "2026-11-21T12:00:00Z",
        "host": "one GPU",
    }
    return Run.model_validate(choices | changes)


def result(
    row: str,
    outcome: Outcome = "fits",
    *,
    device: Device = GPU,
    memory: dict[str, Any] | None = None,
    shots: tuple[Snapshot, ...] = (),
    speed: dict[str, float] | None = None,
    losses: tuple[float, ...] = (),
    ranks: tuple[Measured, ...] = (),
    **spec: Any,
) -> Result:
    """Return the result of one row; ``spec`` changes its specification (size, weights, data, length, settings)."""
    ran = run(row).spec(suite([{"id": row}]), row).model_copy(update=spec)
    return Result(
        spec=ran,
        fingerprint=ran.fingerprint,
        code="0" * 64,
        outcome=outcome,
        reason=f"{row} ended as {outcome}",
        device=device,
        memory=Memory(snapshots=shots, **(memory or {})),
        speed=Speed(**SPEED | (speed or {})) if speed is not None else None,
        losses=losses,
        ranks=ranks,
    )


def ranks(**memory: list[float]) -> tuple[Measured, ...]:
    """Return the measurements of each rank of a row: ``peak_gib=[1.0, 2.0]`` are the peaks of ranks 0 and 1."""
    return tuple(
        Measured(
            rank=rank,
            outcome="fits",
            reason="trained to the end",
            device=GPU,
            memory=Memory(**dict(zip(memory, values, strict=True))),
        )
        for rank, values in enumerate(zip(*memory.values(), strict=True))
    )


SPEED: dict[str, Any] = {
    "optimizer_steps": 10,
    "micro_steps": 10,
    "planned_micro_steps": 10,
    "measured_micro_steps": 9,
    "micro_step_s": 0.5,
    "step_s": 0.5,
    "spread": 0.1,
    "samples_per_s": 4.0,
    "train_s": 5.0,
}


def shot(point: str, **gib: float) -> Snapshot:
    """Return a snapshot of the first micro-step; values that are not given are 0 GiB."""
    parts = ("params_gib", "grads_gib", "optimizer_gib", "optimizer_cpu_gib", "activations_gib", "allocated_gib")
    values: dict[str, Any] = dict.fromkeys((*parts, "peak_gib"), 0.0) | gib
    return Snapshot.model_validate({"step": 0, "micro_step": 0, "point": point, **values})
