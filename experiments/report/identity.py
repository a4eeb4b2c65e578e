"""Identify a run by date, machine, versions, duration and cost, and find the previous run with the same options."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from experiments.results.run_folder import VERDICT_FILE, Run
from experiments.results.schema import Record, Result
from experiments.results.verdicts import Evaluation, Status
from experiments.results.wording import COMMIT_DIGITS, format_number
from provision.files import read_bytes
from provision.words import number_with_noun

SHOWN_LIBRARIES = ("torch", "transformers", "lightning", "deepspeed", "litgpt")
MATCHING_OPTIONS = ("suite", "card", "size", "length", "weights")
"""Options that must be the same in a run and in its previous run."""


class Fact(Record):
    """A fact about a run, as a name and a text."""

    name: str
    value: str


class PreviousRun(Record):
    """The newest earlier run with the same options in the same folder of runs."""

    run_id: str
    date: str
    statuses: dict[str, Status] = Field(description="status by id of the statement")


def identity_facts(run: Run, results: Mapping[str, Result]) -> tuple[Fact, ...]:
    """Return the facts at the top of a report; without results, only the facts that run.json has."""
    facts = {
        "run": run.run_id,
        "date": format_date(run.started_at),
        "machine": "; ".join(dict.fromkeys(map(_describe_machine, results.values()))) or run.host,
        "versions": _describe_versions(results),
        "time": _describe_total_time(results),
        "cost": _describe_gpu_hours(results),
        "commit": (run.git_commit or "")[:COMMIT_DIGITS],
    }
    return tuple(Fact(name=name, value=value) for name, value in facts.items() if value)


def format_date(started_at: str) -> str:
    """Format a time in ISO 8601 as '1 July 2026, 09:00 UTC'. Return any other text unchanged."""
    try:
        when = datetime.fromisoformat(started_at).astimezone(UTC)
    except ValueError:
        return started_at
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def duration_in_words(seconds: float) -> str:
    """Format seconds: '42 s', '7 min 21 s', '3 h 5 min'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def find_previous_run(folder: Path, run: Run) -> PreviousRun | None:
    """Return the newest evaluated run of the same suite, card, size, length and weights that is older than ``run``."""
    earlier_runs = []
    for path in folder.resolve().parent.glob(f"*/{VERDICT_FILE}"):
        try:
            evaluation = Evaluation.model_validate_json(read_bytes(path))
        except (OSError, ValidationError):
            continue
        if evaluation.run.started_at < run.started_at and all(
            getattr(evaluation.run, name) == getattr(run, name) for name in MATCHING_OPTIONS
        ):
            earlier_runs.append(evaluation)
    last = max(earlier_runs, key=lambda evaluation: evaluation.run.started_at, default=None)
    if last is None:
        return None
    statuses = {verdict.id: verdict.status for verdict in last.verdicts}
    return PreviousRun(run_id=last.run.run_id, date=format_date(last.run.started_at), statuses=statuses)


def _describe_machine(result: Result) -> str:
    device = result.device
    count = f"{device.count} x " if device.count > 1 else ""
    memory = f", {format_number(device.memory_gib)} GiB" if device.memory_gib else ""
    host_memory = f"{format_number(device.host_memory_gib)} GiB host memory"
    return f"{count}{device.name}{memory}; {device.host_cpus} cores, {host_memory}"


def _describe_versions(results: Mapping[str, Result]) -> str:
    version_texts = {}
    for name in SHOWN_LIBRARIES:
        versions = dict.fromkeys(result.versions[name] for result in results.values() if name in result.versions)
        if versions:
            version_texts[name] = " and ".join(versions)
    drivers = dict.fromkeys(result.device.driver for result in results.values() if result.device.driver)
    if drivers:
        version_texts["driver"] = " and ".join(drivers)
    return ", ".join(f"{name} {version}" for name, version in version_texts.items())


def _describe_total_time(results: Mapping[str, Result]) -> str:
    if not results:
        return ""
    rows = number_with_noun(len(results), "row")
    return f"{duration_in_words(sum(result.elapsed_s for result in results.values()))} for {rows}"


def _describe_gpu_hours(results: Mapping[str, Result]) -> str:
    """Return the GPU-hours of all ranks as text; "" if rows shared a GPU, because their times overlap."""
    on_gpu = [one for one in results.values() if one.device.kind == "cuda"]
    used = sum(one.gpu_s or 0.0 for one in on_gpu)
    return f"{format_number(used / 3600)} GPU-hours" if used and not any(one.device.shared for one in on_gpu) else ""
