"""Fit the time of FSDP's hooks, and the difference between the hosts of ranks, to the stored measurements."""

import itertools
import re
from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean
from typing import Any

from tests.benchmarks.prediction.tables import relative_error

FSDP_CASE = re.compile(r"fsdp, use_orig_params True, (\d+) units of (\d+)")
DDP_LAYERS = 200
DDP_CASES = {
    f"ddp, {kind}{DDP_LAYERS} parameters": f"plain, {plain}, {DDP_LAYERS} parameters"
    for kind, plain in (("", "together"), ("wide, ", "wide"))
}
"""Cases with DDP, and those without, which have the same layers."""
COLLECTIVES, VIEWS = 3, 6
"""Collective operations of a unit of FSDP in a step without accumulation, and how often it replaces the views of each
parameter: after each of two gathers, after it has freed what it gathered, and those of the gradients twice."""
SHARD_S = tuple(number * 1e-5 for number in range(50, 200))
VIEW_S = tuple(number * 5e-7 for number in range(60))
"""Seconds for a collective operation and for a view among which a fit chooses."""


def hook_times(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the host's seconds for the hooks of FSDP in each case, with its collective operations and views."""
    of_case = {(one["case"], one["rank"]): one for one in lines}
    found = []
    for (case, rank), one in of_case.items():
        if not (match := FSDP_CASE.fullmatch(case)):
            continue
        units, layers = map(int, match.groups())
        plain = of_case[f"plain, {units} units of {layers}", rank]
        passes_s = one["forward_s"] + one["backward_s"] - one["wait_s"]
        hooks_s = passes_s - plain["forward_s"] - plain["backward_s"]
        counts = {"collectives": COLLECTIVES * units, "views": VIEWS * units * layers}
        found.append({"units": units, "layers": layers, "rank": rank, "hooks_s": hooks_s, **counts})
    return sorted(found, key=lambda one: (one["units"], one["layers"], one["rank"]))


def reducer_times(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the microseconds by which DDP makes the host's backward pass longer, for each parameter."""
    of_case = {(one["case"], one["rank"]): one for one in lines}
    return [
        {
            "case": case,
            "rank": rank,
            "us": 1e6 * (of_case[case, rank]["backward_s"] - of_case[plain, rank]["backward_s"]) / DDP_LAYERS,
        }
        for case, plain in DDP_CASES.items()
        for rank in range(2)
    ]


def predicted_s(one: Mapping[str, Any], shard_s: float, view_s: float) -> float:
    """Return the seconds of the hooks with these constants."""
    return float(shard_s * one["collectives"] + view_s * one["views"])


def fit_hooks(times: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the seconds of a collective operation and of a view with the smallest mean error."""
    return min(
        itertools.product(SHARD_S, VIEW_S),
        key=lambda one: fmean(abs(relative_error(predicted_s(case, *one), case["hooks_s"])) for case in times),
    )


def pairs(passes: Sequence[Mapping[str, Any]], hosts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the host's work of two processes that did the same at the same time, and its relative difference.

    passes: as ``passes`` writes them. hosts: lines of host_times.jsonl, of which those with two processes count.
    """
    work: dict[str, list[float]] = {}
    for one in passes:
        work.setdefault(one["row"], []).append(one["work_s"]["forward"] + one["work_s"]["backward"])
    for one in hosts:
        if one["processes"] > 1:
            name = f"{one['spec']['row']} (host_times.jsonl)"
            work.setdefault(name, []).append(sum(phase["host_s"] for phase in one["passes"].values()))
    return [
        {"row": row, "work_s": both, "difference": abs(both[0] - both[1]) / fmean(both)}
        for row, both in work.items()
        if len(both) == 2
    ]


def spread_of_ranks(found: Sequence[Mapping[str, Any]]) -> float:
    """Return the standard deviation of one process's work, relative to the mean: that of the differences / sqrt(2)."""
    return sqrt(fmean(one["difference"] ** 2 for one in found) / 2)
