"""Export the history to MLflow: one MLflow run for each recorded run, and one child run for each of its rows.

Only this module imports mlflow. If the target is a folder, the export writes MLflow's database mlflow.db there. It does
not write plain files, because MLflow supports them only if the user consents explicitly.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from experiments.errors import InputError
from experiments.history.series import RecordedRun, Series
from experiments.system.packages import require_packages

if TYPE_CHECKING:
    from mlflow import MlflowClient

MLFLOW_VARIABLES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}
"""Values of environment variables that the user has not set: MLflow sends no usage data, and waits only briefly for a
server."""
KEY_TAG, PARENT_TAG, COMMIT_TAG = "testbed.key", "mlflow.parentRunId", "mlflow.source.git.commit"
BATCH_SIZE = 100
FORBIDDEN_IN_NAMES = re.compile(r"[^\w\-. /:]")
"""Characters that MLflow does not allow in names."""
MAX_VALUE_CHARACTERS = 5000
"""Longer values of tags and parameters are cut."""


def export_to_mlflow(target: str, all_series: Sequence[Series]) -> int:
    """Add each run of the series that MLflow at ``target`` lacks; return the number of added runs.

    target: URI of a tracking server or of a database, or a folder. Raises MissingPackage, and InputError if the target
    cannot be used.
    """
    require_packages("mlflow", "alembic", "sqlalchemy")
    for name, value in MLFLOW_VARIABLES.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri, artifacts = _addresses(target)
    try:
        client = MlflowClient(tracking_uri=uri)
        return sum(_export_series(client, series, artifacts) for series in all_series)
    except MlflowException as problem:
        text = str(problem).replace(target, _address_without_password(target)).splitlines()[0][:300]
        raise InputError(f"--mlflow {_address_without_password(target)}: {text}") from None


def _addresses(target: str) -> tuple[str, str | None]:
    """Return the URI of the tracking store and, if ``target`` is a folder, the URI of its artifacts, else None."""
    if "://" in target:
        return target, None
    folder = Path(target).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError(f"--mlflow {target}: cannot be used as a folder ({problem.strerror})") from None
    return f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()


def _address_without_password(target: str) -> str:
    parts = urlsplit(target)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else target


def _export_series(client: "MlflowClient", series: Series, artifacts: str | None) -> int:
    name = f"llm-testbed/{series.suite}"
    known = client.get_experiment_by_name(name)
    experiment = known.experiment_id if known else client.create_experiment(name, artifacts)
    return sum(_export_run(client, experiment, series, run) for run in series.runs)


def _export_run(client: "MlflowClient", experiment: str, series: Series, run: RecordedRun) -> bool:
    """Add a run and its rows; return False if MLflow already has the run. An interrupted export is done again."""
    key = f"{run.run_id} {run.started_at}"
    exported = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'")
    if any(one.info.status == "FINISHED" for one in exported):
        return False
    for one in exported:
        for child in client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{one.info.run_id}'"):
            client.delete_run(child.info.run_id)
        client.delete_run(one.info.run_id)
    settings = {"suite": series.suite, "card": series.card, "size": series.size, "length": series.length}
    start_ms = int(datetime.fromisoformat(run.started_at).timestamp() * 1000)
    tags = {
        KEY_TAG: key,
        COMMIT_TAG: run.commit,
        **{f"statement/{id_}": one.status for id_, one in run.verdicts.items()},
    }
    counts = Counter(one.status for one in run.verdicts.values())
    parent = client.create_run(experiment, start_ms, run_name=run.run_id)
    _log(
        client,
        parent.info.run_id,
        start_ms,
        tags,
        settings,
        {f"statements {name}": number for name, number in counts.items()},
    )
    for row in dict.fromkeys(row for row, _ in (*run.facts, *run.measured)):
        child = client.create_run(experiment, start_ms, run_name=f"{run.run_id}/{row}")
        row_tags = {PARENT_TAG: parent.info.run_id, COMMIT_TAG: run.commit, **_values_of_row(run.causes, row)}
        metrics = {name: measured.value for name, measured in _values_of_row(run.measured, row).items()}
        _log(
            client,
            child.info.run_id,
            start_ms,
            row_tags,
            settings | {"row": row} | _values_of_row(run.facts, row),
            metrics,
        )
        client.set_terminated(child.info.run_id, end_time=start_ms)
    client.set_terminated(parent.info.run_id, end_time=start_ms)
    return True


def _values_of_row(values: Mapping[tuple[str, str], Any], row: str) -> dict[str, Any]:
    return {name: value for (value_row, name), value in values.items() if value_row == row}


def _log(
    client: "MlflowClient",
    run: str,
    at_ms: int,
    tags: Mapping[str, str],
    params: Mapping[str, str],
    metrics: Mapping[str, float],
) -> None:
    """Log the values of a run in batches that MLflow accepts."""
    from mlflow.entities import Metric, Param, RunTag

    for tag_batch in _batches(
        [RunTag(_allowed_name(name), str(value)[:MAX_VALUE_CHARACTERS]) for name, value in tags.items()]
    ):
        client.log_batch(run, tags=tag_batch)
    for param_batch in _batches(
        [Param(_allowed_name(name), str(value)[:MAX_VALUE_CHARACTERS]) for name, value in params.items()]
    ):
        client.log_batch(run, params=param_batch)
    for metric_batch in _batches([Metric(_allowed_name(name), value, at_ms, 0) for name, value in metrics.items()]):
        client.log_batch(run, metrics=metric_batch)


def _batches(values: list[Any]) -> Iterator[list[Any]]:
    return (values[begin : begin + BATCH_SIZE] for begin in range(0, len(values), BATCH_SIZE))


def _allowed_name(text: str) -> str:
    return FORBIDDEN_IN_NAMES.sub("_", text)
