"""Fit the constants of the host's time of several ranks: the hooks of FSDP, and the difference between ranks.

    python -m tests.benchmarks.training.rank_hosts hooks FILE           on two GPUs
    python -m tests.benchmarks.training.rank_hosts passes FILE ROW...   on two GPUs
    python -m tests.benchmarks.training.rank_hosts fit

``hooks`` measures the host's time of DDP and FSDP around small layers, and of the layers alone. ``passes`` measures the
host's work in the phases of rows of the stored runs on two GPUs. A row on one GPU runs on both GPUs at the same time.
``fit`` needs no GPU. It reads rank_hooks.jsonl, rank_passes.jsonl and host_times.jsonl of the folder
experiments/evidence/prediction_h200, and writes rank_hosts.md and rank_hosts.json into it: the constants, and the
predicted steps of the rows beside those measured on this machine and in the stored runs. Errors are relative to the
measurement; negative: too low.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.prediction import tracer
from experiments.prediction.phantom.library import Phantom, load
from experiments.results.schema import Result, read_results
from experiments.system.files import cache_folder
from experiments.training.distributed.ranks import free_port
from tests.benchmarks.forks import run_in_fork
from tests.benchmarks.prediction.tables import EVIDENCE, markdown, percent, relative_error, write
from tests.benchmarks.training.rank_hosts.fitting import (
    fit_hooks,
    hook_times,
    pairs,
    predicted_s,
    reducer_times,
    spread_of_ranks,
)
from tests.benchmarks.training.step_times import trace_row

RUNS = ("multi_gpu_litgpt-a100_80gb-full-verdict-2gpus", "slurm_hf_trainer-a100_40gb-full-verdict-node-of-2gpus")


def read_lines(name: str) -> list[dict[str, Any]]:
    """Return the lines of a file of the evidence."""
    return [json.loads(line) for line in (EVIDENCE / name).read_text().splitlines()]


def stored_results() -> dict[str, Result]:
    """Return the rows of the stored runs on two GPUs, by name."""
    return {one.spec.row: one for run in RUNS for one in read_results(EVIDENCE.parent / run / "results.jsonl").values()}


def predicted_steps(passes: Sequence[Mapping[str, Any]], phantom: Phantom) -> list[dict[str, Any]]:
    """Return the predicted and the measured step of each row, that of the slowest process."""
    stored, slowest = stored_results(), {}
    for one in sorted(passes, key=lambda one: float(one["speed"]["step_s"])):
        slowest[one["row"]] = one["speed"]
    found = []
    for row, speed in slowest.items():
        step_s = trace_row({**stored[row].model_dump(mode="json"), "speed": speed}, phantom).time.step_s
        before_s = stored[row].speed
        found.append(
            {
                "row": row,
                "processes": sum(one["row"] == row for one in passes),
                "predicted_s": step_s,
                "measured_s": speed["step_s"],
                "error": relative_error(step_s, speed["step_s"]),
                "stored_s": before_s.step_s if before_s else None,
            }
        )
    return found


def fit() -> None:
    """Fit the constants and write the tables."""
    phantom = load(cache_folder())
    tracer.import_libraries(phantom)
    passes, hosts = read_lines("rank_passes.jsonl"), read_lines("host_times.jsonl")[1:]
    hooks = read_lines("rank_hooks.jsonl")
    times, reducer, both = hook_times(hooks), reducer_times(hooks), pairs(passes, hosts)
    shard_s, view_s = fit_hooks(times)
    spread, steps = spread_of_ranks(both), predicted_steps(passes, phantom)
    constants = {"shards": shard_s, "views": view_s, "spread": spread}
    mean_error = fmean(abs(one["error"]) for one in steps)
    data = {
        "constants": constants,
        "hooks": times,
        "reducer": reducer,
        "pairs": both,
        "steps": steps,
        "mean_error": mean_error,
    }
    write(EVIDENCE, "rank_hosts", tables(data), data)


def tables(found: Mapping[str, Any]) -> str:
    """Return the measurements, the constants and the compared steps as tables."""
    constants = found["constants"]
    shard_s, view_s = constants["shards"], constants["views"]
    errors = [relative_error(predicted_s(one, shard_s, view_s), one["hooks_s"]) for one in found["hooks"]]
    hook_cells = [
        [*(str(one[name]) for name in ("units", "layers", "rank")), f"{1000 * one['hooks_s']:.1f}", percent(error)]
        for one, error in zip(found["hooks"], errors, strict=True)
    ]
    pair_cells = [
        [one["row"], *(f"{s:.3f}" for s in one["work_s"]), f"{one['difference']:.1%}"] for one in found["pairs"]
    ]
    reducer_cells = [[one["case"], str(one["rank"]), f"{one['us']:.0f}"] for one in found["reducer"]]
    names = ("predicted_s", "measured_s", "stored_s")
    step_cells = [
        [one["row"], str(one["processes"]), *(f"{one[name]:.3f}" for name in names), percent(one["error"])]
        for one in found["steps"]
    ]
    return (
        markdown(["units of FSDP", "parameters of each", "rank", "hooks, ms", "error of the fit"], hook_cells)
        + f"\nSeconds of a collective operation: {shard_s:.5f}, of a view: {view_s:.7f}; mean error"
        f" {fmean(map(abs, errors)):.1%}\n\n"
        + markdown(["case", "rank", "longer backward pass, µs for each parameter"], reducer_cells)
        + "\n"
        + markdown(["row", "host's work of a process, s", "of the other, s", "difference"], pair_cells)
        + f"\nStandard deviation between processes: {constants['spread']:.3f}\n\n"
        + markdown(["row", "processes", "predicted, s", "measured, s", "measured earlier, s", "error"], step_cells)
        + f"\nMean error of the steps: {found['mean_error']:.1%}\n"
    )


def measure_hooks(file: Path) -> None:
    """Measure the cases with two processes, and append a line for each case and process."""
    from torch.distributed import TCPStore

    from tests.benchmarks.training.rank_hosts.hooks import RANKS, measure_rank

    store = TCPStore("127.0.0.1", 0, is_master=True)
    run_together([(measure_rank, (rank, ("127.0.0.1", store.port))) for rank in range(RANKS)], file)


def measure_passes(file: Path, rows: Sequence[str]) -> None:
    """Measure rows, each with two processes, and append a line for each process."""
    from tests.benchmarks.training.rank_hosts.passes import measure_process

    stored = stored_results()
    for row in rows:
        spec, port = stored[row].spec, str(free_port())
        world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = [world | {"RANK": str(one), "LOCAL_RANK": str(one)} for one in range(2)]
        alone = [{"CUDA_VISIBLE_DEVICES": str(one)} for one in range(2)]
        environments = ranks if spec.settings.ranks > 1 else alone
        run_together([(measure_process, (spec, environment)) for environment in environments], file)


def run_together(calls: Sequence[tuple[Any, tuple[Any, ...]]], file: Path) -> None:
    """Run each function in a fork at the same time, and append the lines that they return."""
    with ThreadPoolExecutor(len(calls)) as threads:
        results = [*threads.map(lambda call: run_in_fork(call[0], *call[1]), calls)]
    with file.open("a") as out:
        for lines in results:
            out.writelines(json.dumps(line) + "\n" for line in lines)


def main(words: Sequence[str]) -> None:
    """Measure, or fit the constants to the stored measurements."""
    if words[0] == "hooks":
        measure_hooks(Path(words[1]))
    elif words[0] == "passes":
        measure_passes(Path(words[1]), words[2:])
    else:
        fit()


if __name__ == "__main__":
    main(sys.argv[1:])
