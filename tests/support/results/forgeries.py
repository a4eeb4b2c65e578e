"""Forged bundles with valid checksums, as a student who knows the format could write them."""

import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.bundle.archive import read_bundle
from experiments.report.archive import write_zip
from experiments.suites.row_spec import RowSpec

Result = dict[str, Any]
MEMORY = ("params_gib", "grads_gib", "optimizer_gib", "activations_gib", "allocated_gib", "peak_gib", "reserved_gib")


class Forger:
    """A genuine bundle whose files can be changed."""

    def __init__(self, genuine: Path) -> None:
        self.contents = read_bundle(genuine)
        self.contents.pop("SHA256SUMS")
        self.contents.pop("verdict.json", None)
        self.run: dict[str, Any] = json.loads(self.contents["run.json"])
        self.results: dict[str, Result] = {}
        for line in self.contents["results.jsonl"].splitlines():
            result = json.loads(line)
            self.results[result["spec"]["row"]] = result

    def write(self, target: Path) -> Path:
        self.contents["run.json"] = json.dumps(self.run).encode()
        self.contents["results.jsonl"] = b"".join(json.dumps(one).encode() + b"\n" for one in self.results.values())
        return write_zip(target, self.contents)

    def telemetry(self, row: str) -> bytes | None:
        return self.contents.get(f"telemetry/{row}.csv")


def lower_peak(forger: Forger, row: str) -> None:
    """State a smaller peak only."""
    forger.results[row]["memory"]["peak_gib"] *= 0.9


def scale_memory(forger: Forger, row: str) -> None:
    """Scale all memory values of a row, so that they remain consistent."""
    result = forger.results[row]
    for measured in (result, *result["ranks"]):
        memory = measured["memory"]
        for shot in memory["snapshots"]:
            for name in MEMORY:
                shot[name] = shot[name] and shot[name] * 0.9
        for name in ("peak_gib", "reserved_gib"):
            memory[name] = memory[name] and memory[name] * 0.9
        memory["peak_by_phase_gib"] = {name: 0.9 * value for name, value in memory["peak_by_phase_gib"].items()}


def raise_throughput(forger: Forger, row: str) -> None:
    """State a higher throughput only."""
    forger.results[row]["speed"]["samples_per_s"] *= 1.5


def scale_times(forger: Forger, row: str) -> None:
    """Scale all times of a row, so that they remain consistent."""
    speed = forger.results[row]["speed"]
    for name in ("step_s", "micro_step_s", "train_s"):
        speed[name] *= 0.4
    speed["samples_per_s"] /= 0.4


def swap_outcome(forger: Forger, row: str) -> None:
    """State that a row fits if it ran out of memory, and the reverse."""
    result = forger.results[row]
    if result["outcome"] == "oom":
        result.update(outcome="fits", failure=None, reason="trained to the end")
    else:
        failure = {"phase": "forward", "step": 1, "kind": "OutOfMemoryError", "message": "out of memory"}
        result.update(outcome="oom", failure=failure, reason="out of GPU memory")


def claim_other_gpu(forger: Forger, row: str) -> None:
    """State that an emulated row ran on a GPU of the stated model."""
    result = forger.results[row]
    for device in (result["device"], *(rank["device"] for rank in result["ranks"])):
        device.update(name="NVIDIA A100-SXM4-80GB", card="a100_80gb", memory_gib=79.15, cap_gib=None)
        device["compute_capability"] = "8.0"


def swap_rows(forger: Forger, row: str) -> None:
    """Give a row the measurements of another one."""
    other = next_row(forger, row)
    forger.results[row], forger.results[other] = (
        {**forger.results[taken], **{key: forger.results[kept][key] for key in ("spec", "fingerprint")}}
        for kept, taken in ((row, other), (other, row))
    )
    mine, its = (f"telemetry/{one}.csv" for one in (row, other))
    forger.contents[mine], forger.contents[its] = forger.contents[its], forger.contents[mine]


def replay_telemetry(forger: Forger, row: str) -> None:
    """Give a row the telemetry of another one, and its summary."""
    other = next_row(forger, row)
    forger.contents[f"telemetry/{row}.csv"] = forger.contents[f"telemetry/{other}.csv"]
    forger.results[row]["telemetry"] = forger.results[other]["telemetry"]


def edit_telemetry(forger: Forger, row: str) -> None:
    """Scale the utilization in the telemetry."""
    text = (forger.telemetry(row) or b"").decode()
    lines = list(csv.DictReader(io.StringIO(text)))
    for line in lines:
        line["gpu_util_percent"] = str(min(100.0, 10 + float(line["gpu_util_percent"] or 0)))
    edited = io.StringIO()
    writer = csv.DictWriter(edited, lines[0])
    writer.writeheader()
    writer.writerows(lines)
    forger.contents[f"telemetry/{row}.csv"] = edited.getvalue().encode()


def halve_batch(forger: Forger, row: str) -> None:
    """Run a row with a smaller batch, with the fingerprint of these settings."""
    result = forger.results[row]
    settings = result["spec"]["settings"]
    settings["batch_size"] = max(1, settings["batch_size"] // 2)
    settings["global_batch_size"] = settings["batch_size"] * settings["accumulate"] * settings["devices"]
    settings["seed"] += 1
    result["fingerprint"] = RowSpec.model_validate(result["spec"]).fingerprint


def copy_run(forger: Forger, row: str) -> None:
    """Hand in another student's run under one's own name, without the other rows."""
    forger.run.update(run_id="mine", started_at="2026-11-30T10:00:00+00:00", rows=[row])
    forger.results = {row: forger.results[row]}
    forger.contents = {name: text for name, text in forger.contents.items() if not name.startswith("telemetry/")}


def next_row(forger: Forger, row: str) -> str:
    """Return another row that has telemetry."""
    rows = [one for one in forger.results if forger.telemetry(one)]
    return rows[(rows.index(row) + 1) % len(rows)]


FORGERIES: tuple[Callable[[Forger, str], None], ...] = (
    lower_peak,
    scale_memory,
    raise_throughput,
    scale_times,
    swap_outcome,
    claim_other_gpu,
    swap_rows,
    replay_telemetry,
    edit_telemetry,
    halve_batch,
    copy_run,
)


def write_hostile_archive(target: Path, name: str, content: bytes = b"x", mode: int = 0o100644) -> Path:
    """Write an archive with one entry of any name and mode."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return target
