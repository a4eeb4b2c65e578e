"""Handwritten runs and results, with numbers like those of the single-GPU suite on a capped H200."""

import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from experiments.prediction.predict import suite_row_spec
from experiments.results.memory_parts import StepPoint
from experiments.results.run_folder import Run, RunFolder
from experiments.results.schema import Device, Failure, Measured, Memory, Phase, Result, Snapshot, Speed, read_result
from experiments.suites.suite import suite_named
from tests.support.runners.fake_predictions import Predictor

SUITE = "single_gpu_blip2"
H200 = Device(
    kind="cuda",
    name="NVIDIA H200",
    memory_gib=139.8,
    card="h200_141gb",
    cap_gib=78.6,
    driver="570.86.15",
    cuda="13.0",
    compute_capability="9.0",
    topology="        GPU0    CPU Affinity    NUMA Affinity\nGPU0     X      0-47            0",
    host_cpus=16,
    host_memory_gib=128.0,
)
A100 = H200.model_copy(
    update={"name": "NVIDIA A100 80GB PCIe", "memory_gib": 79.15, "card": "a100_80gb", "cap_gib": None}
)
PROCESSOR = Device(kind="cpu", name="AMD EPYC 7763", host_cpus=2, host_memory_gib=15.6)
EMULATING_GPU_NAME = "NVIDIA H200 capped at 78.6 GiB, emulating a100_80gb"

# row: outcome, peak, reserved, parameters, gradients, optimizer, activations (GiB), samples/s
MEASURED = {
    "baseline": ("oom", 74.34, 78.60, 14.43, 14.43, 28.86, 15.1, None),
    "reduced-batch": ("fits", 76.72, 78.57, 14.43, 14.43, 28.86, 14.9, 17.6),
    "grad-accumulation": ("fits", 76.92, 78.52, 14.43, 14.43, 28.86, 14.9, 18.1),
    "grad-accumulation-lr4": ("fits", 76.92, 78.52, 14.43, 14.43, 28.86, 14.9, 18.1),
    "reduced-precision": ("fits", 38.94, 40.14, 7.22, 7.22, 14.43, 8.1, 87.8),
    "mixed-precision": ("fits", 76.71, 78.56, 14.43, 14.43, 28.86, 9.9, 55.0),
    "larger-model": ("fits", 74.43, 76.52, 14.82, 14.82, 29.64, 9.4, 62.0),
    "xxl": ("oom", 76.70, 78.58, 23.27, 23.27, 0.0, 12.0, None),
    "xxl-smallest-batch": ("oom", 78.21, 78.58, 23.27, 23.27, 0.0, 1.3, None),
    "xxl-sgd": ("fits", 64.64, 65.60, 23.27, 23.27, 0.0, 16.0, 62.5),
    "xxl-adam-8bit": ("fits", 72.37, 72.51, 23.27, 23.27, 23.4, 2.1, 20.1),
    "xxl-activation-checkpointing": ("oom", 70.20, 70.45, 23.27, 23.27, 23.4, 0.4, None),
}


def make_run(**changes: Any) -> Run:
    """Return a run of the whole suite on a capped H200; ``changes`` are fields of the run."""
    fields: dict[str, Any] = {
        "run_id": "2026-07-01-single-h200",
        "suite": SUITE,
        "recipe_version": suite_named(SUITE).version,
        "rows": tuple(row.id for row in suite_named(SUITE).rows),
        "site": "local",
        "card": "a100_80gb",
        "size": "full",
        "length": "verdict",
        "weights": "random",
        "data": "synthetic",
        "input": "as-taught",
        "command": "testbed run single --card a100_80gb",
        "started_at": "2026-07-01T09:00:00Z",
        "git_commit": "d56b92cf00d56b92cf00d56b92cf00d56b92cf00",
        "host": "16 x Intel Xeon, NVIDIA H200",
    }
    return Run(**{**fields, **changes})


def make_result(run: Run, row: str, outcome: str = "fits", device: Device = H200, **changes: Any) -> Result:
    """Return a result of ``row`` in ``run``; ``changes`` are fields of the result."""
    spec = run.spec(suite_named(run.suite), row)
    fields: dict[str, Any] = {
        "spec": spec,
        "fingerprint": spec.fingerprint,
        "code": "c0de" * 16,
        "outcome": outcome,
        "reason": {"fits": "trained to the end"}.get(outcome, f"ended with {outcome}"),
        "device": device,
        "versions": {"torch": "2.11.0+cu130", "transformers": "5.17.2", "lightning": "2.6.6"},
        "git_commit": run.git_commit,
        "command": f"python -m experiments.training.worker {row}",
        "started_at": run.started_at,
        "elapsed_s": 31.5,
        "gpu_s": 24.25,
    }
    return Result(**{**fields, **changes})


def make_memory(
    peak: float,
    reserved: float | None,
    params: float,
    grads: float,
    optimizer: float,
    activations: float,
    steps: int = 2,
) -> Memory:
    """Return memory at the four points of each of ``steps`` steps; the optimizer has state after the first step."""
    shots = []
    for step in range(steps):
        state = optimizer if step else 0.0
        points: tuple[tuple[StepPoint, float, float, float], ...] = (
            ("before forward", 0.0, state, 0.0),
            ("after forward", 0.0, state, activations),
            ("after backward", grads, state, 0.01 * activations),
            ("after optimizer step", grads, optimizer, 0.01 * activations),
        )
        for point, grads_now, state_now, activations_now in points:
            shots.append(
                Snapshot(
                    step=step,
                    micro_step=0,
                    point=point,
                    params_gib=params,
                    grads_gib=grads_now,
                    optimizer_gib=state_now,
                    optimizer_cpu_gib=0.0,
                    activations_gib=activations_now,
                    allocated_gib=params + grads_now + state_now + activations_now,
                    peak_gib=peak,
                    reserved_gib=reserved,
                )
            )
    phases: dict[Phase, float] = {
        "load": params,
        "forward": peak * 0.9,
        "backward": peak,
        "optimizer step": peak * 0.97,
    }
    return Memory(
        snapshots=tuple(shots), peak_gib=peak, peak_by_phase_gib=phases, reserved_gib=reserved, host_peak_gib=6.2
    )


def make_speed(samples_per_s: float) -> Speed:
    return Speed(
        optimizer_steps=3,
        micro_steps=12,
        planned_micro_steps=64,
        measured_micro_steps=8,
        micro_step_s=16 / samples_per_s,
        step_s=64 / samples_per_s,
        spread=0.021,
        samples_per_s=samples_per_s,
        tflop_per_sample=2.1,
        tflops_per_s=2.1 * samples_per_s,
        peak_share=0.0021 * samples_per_s,
        train_s=1024 / samples_per_s,
    )


def make_failure(message: str = "CUDA out of memory. Tried to allocate 1.21 GiB.") -> Failure:
    return Failure(phase="backward", step=1, micro_step=0, requested_gib=1.21, kind="OutOfMemoryError", message=message)


def make_results(run: Run, device: Device = H200) -> dict[str, Result]:
    """Return a result of ``run`` for every row of MEASURED, and an error and a rejection for two later rows."""
    results = {}
    for row, (outcome, peak, reserved, params, grads, optimizer, activations, speed) in MEASURED.items():
        results[row] = make_result(
            run,
            row,
            outcome,
            device,
            memory=make_memory(peak, reserved, params, grads, optimizer, activations, 2 if optimizer else 1),
            speed=make_speed(speed) if speed else None,
            losses=(3.2, 2.9) if speed else (),
            reason="trained to the end" if speed else "out of GPU memory in the backward pass of step 1",
            failure=None if speed else make_failure(),
            parameters=3744761856,
            trainable_parameters=3744761856,
        )
    results["xxl-cpu-offload"] = make_result(
        run,
        "xxl-cpu-offload",
        "error",
        device,
        reason="the compiler of DeepSpeed's Adam is missing",
        failure=make_failure(),
    )
    results["xxl-lora"] = make_result(run, "xxl-lora", "rejected", device, reason="the node has 64 GiB of host memory")
    return results


# row: peak of each rank (GiB), samples/s of all, share of a step in communication
SEVERAL: dict[str, tuple[tuple[float, ...], float, float]] = {
    "7b-1gpu": ((64.5,), 7.6, 0.0),
    "7b-4gpu-ddp": ((77.2, 76.1, 77.0, 75.4), 22.8, 0.31),
    "7b-4gpu-fsdp": ((47.1, 46.0, 46.8, 45.9), 19.4, 0.42),
}


def ranks_run(path: Path, gpus_per_node: int | None = None) -> RunFolder:
    """Return multi-GPU rows on capped H200s: one GPU, DDP, FSDP, and FSDP with a larger batch that fails."""
    rows = (*SEVERAL, "7b-4gpu-fsdp-b8")
    run = make_run(suite="multi_gpu_litgpt", rows=rows, gpus_per_node=gpus_per_node)
    results = {row: _several(run, row) for row in rows}
    return write_run(path, run, results)


def _several(run: Run, row: str) -> Result:
    settings = run.spec(suite_named(run.suite), row).settings
    peaks, rate, communication = SEVERAL.get(row, ((70.0, 78.0, 69.0, 71.0), None, 0.0))
    device = H200.model_copy(update={"count": settings.ranks})
    memories = [make_memory(peak, peak + 4, 12.55, 12.55, 25.1, peak - 51) for peak in peaks[: settings.ranks]]
    speed = (
        make_speed(rate).model_copy(
            update={
                "planned_micro_steps": 1600 // (settings.batch_size * settings.ranks),
                "communication_share": communication,
                "exposed_communication_share": communication / 2,
                "gpu_idle_share": 0.04,
            }
        )
        if rate
        else None
    )
    fields: dict[str, Any] = {"speed": speed, "max_tokens": 512}
    ranks = [
        Measured(rank=rank, outcome="fits", reason="trained to the end", device=H200, memory=memory, **fields)
        for rank, memory in enumerate(memories)
    ]
    if rate:
        several = tuple(ranks) if len(ranks) > 1 else ()
        return make_result(run, row, "fits", device, memory=memories[0], ranks=several, **fields)
    failure = make_failure().model_copy(update={"rank": 1})
    ranks = [one.model_copy(update={"outcome": "error", "reason": "ended with its group"}) for one in ranks]
    failed_in_backward = {
        "outcome": "oom",
        "reason": "out of GPU memory in the backward pass of step 1",
        "failure": failure,
    }
    ranks[1] = ranks[1].model_copy(update=failed_in_backward)
    reason = f"rank 1: {ranks[1].reason}"
    return make_result(
        run, row, "oom", device, memory=memories[1], ranks=tuple(ranks), failure=failure, reason=reason, **fields
    )


def write_run(path: Path, run: Run, results: dict[str, Result], telemetry: bool = True) -> RunFolder:
    """Write the run's folder like a runner: run.json, and the four files of each result."""
    folder = RunFolder(path)
    folder.write_run(run)
    for row, result in results.items():
        place = path / run.suite / row
        place.mkdir(parents=True)
        (place / "result.json").write_text(result.model_dump_json(indent=2))
        (place / "notebook.ipynb").write_text("{}")
        (place / "log.txt").write_text(f"{row}: {result.reason}\n")
        if telemetry:
            gpus = result.device.count if result.device.kind == "cuda" else 0
            (place / "telemetry.csv").write_text(telemetry_csv(gpus))
        assert read_result(place / "result.json") == result
    return folder


def telemetry_csv(gpus: int, samples: int = 60) -> str:
    """Return the telemetry of a row on this number of GPUs."""
    names = (
        "t_s,phase,gpu_util_percent,gpu_memory_gib,gpu_power_w,gpu_sm_clock_mhz,gpu_temperature_c,gpu_processes,"
        "host_cpu_percent,host_memory_gib,process_memory_gib"
    )
    several = range(gpus) if gpus > 1 else ()
    lines = [",".join([names, *(f"gpu{number}_util_percent,gpu{number}_memory_gib" for number in several)])]
    for t in range(samples):
        wave = math.sin(t / 3)
        busy = [
            f"{90 + 9 * wave:.0f}",
            f"{min(76.0, 2 * t):.2f}",
            f"{500 + 150 * wave:.0f}",
            "1755",
            f"{40 + t / 4:.0f}",
            "1",
        ]
        cells = [
            f"{t / 2}",
            "load" if t < 10 else "forward",
            *(busy if gpus else [""] * 6),
            f"{20 + 10 * wave:.1f}",
            f"{30 + t / 20:.2f}",
            f"{t / 10:.2f}",
            *(f"{80 + 4 * number + 9 * wave:.0f},{min(70.0 + number, 2 * t):.2f}" for number in several),
        ]
        lines.append(",".join(cells))
    return "\n".join(lines) + "\n"


def h200_run(path: Path, **changes: Any) -> RunFolder:
    """Write a run of the whole suite on a capped H200; the last row has no result."""
    run = make_run(**changes)
    return write_run(path, run, make_results(run))


def worse_run(path: Path) -> RunFolder:
    """Write a later run of h200_run with a newer torch and driver: one row fails, another takes twice the time."""
    run = make_run(run_id="worse", started_at="2026-08-01T09:00:00Z", git_commit="feed" * 10)
    device = H200.model_copy(update={"driver": "580.1"})
    results = make_results(run, device)
    results["reduced-batch"] = results["reduced-batch"].model_copy(update={"speed": make_speed(8.8)})
    results["xxl-sgd"] = make_result(run, "xxl-sgd", "oom", device, memory=make_memory(78.2, 78.5, 23, 23, 0, 30))
    changed = {
        row: one.model_copy(update={"versions": one.versions | {"torch": "2.12.0"}}) for row, one in results.items()
    }
    return write_run(path, run, changed)


def tiny_run(path: Path) -> RunFolder:
    """Write a run with tiny models on a CPU; every row has a result."""
    run = make_run(run_id="tiny", size="tiny")
    results = {}
    for row in run.rows:
        _, peak, _, params, grads, optimizer, activations, speed = MEASURED.get(row, MEASURED["xxl-adam-8bit"])
        small = (params / 2000, grads / 2000, optimizer / 2000, activations / 2000)
        memory = make_memory(peak / 2000, None, *small)
        results[row] = make_result(run, row, "fits", PROCESSOR, memory=memory, speed=make_speed(speed or 20.0))
    return write_run(path, run, results)


def with_predictions(folder: RunFolder, factor: float = 1.01) -> RunFolder:
    """Write a prediction for each row of the run: ``factor`` times its peak in MEASURED, or times 60 GiB."""
    run = folder.read_run()
    suite = suite_named(run.suite)
    specs = [suite_row_spec(suite, suite.row(row), run.card) for row in run.rows]
    predict = Predictor(lambda spec: _highest(spec.row) * factor)
    folder.write_predictions(predict(specs))
    return folder


def _highest(row: str) -> float:
    """Return the peak of a row, GiB; for a row that ran out of memory, more than the card has."""
    outcome, peak = MEASURED.get(row, ("fits", 60.0))[:2]
    return peak if outcome == "fits" else 90.0


class Page(HTMLParser):
    """The visible text of a page, its links, ids and figures, without scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self._hidden = "", False
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.source = path.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag in ("script", "style")
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._hidden else data

    def values(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]
