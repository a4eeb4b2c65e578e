"""A run: the choices it was started with, and the folder that its results lie in.

results/<run-id>/
    run.json                      the choices and where the run was made
    predictions.json              what its rows would take at full size, where that was predicted
    <suite>/<row>/result.json     one result a row, written last: a row without it has not finished
    <suite>/<row>/notebook.ipynb  the executed notebook
    <suite>/<row>/log.txt         everything that the row printed, with the traceback of a failure
    <suite>/<row>/telemetry.csv   what GPU and host did over time
    verdict.json report.html junit.xml SHA256SUMS
    results.jsonl                 instead of rows' folders where a run is stored in compact form: one result a line
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, ValidationError

from experiments.errors import InputError
from experiments.results.predictions import PREDICTION_VERSION, Prediction
from experiments.results.schema import RESULT_FILE, RESULTS_FILE, Record, Result, read_result, read_results
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import Input, Length, Size, Suite, Weights
from experiments.system.files import write_atomically

RUN_FILE = "run.json"
PREDICTIONS_FILE = "predictions.json"
RUN_SCHEMA_VERSION: Literal[1] = 1


class Run(Record):
    """What a run was started with (run.json)."""

    schema_version: Literal[1] = RUN_SCHEMA_VERSION
    run_id: str
    suite: str
    recipe_version: int
    rows: tuple[str, ...] = Field(description="the rows asked for, in the recipe's order")
    site: str
    profile: str | None = Field(default=None, description="with site slurm: the cluster's profile, by name or file")
    card: str
    size: Size
    length: Length
    weights: Weights
    data: str
    data_sha256: str | None = None
    input: Input
    gpus_per_node: int | None = Field(default=None, description="rows that want more of a node are scaled down to it")
    image_variant: str = Field(
        default="current",
        validation_alias=AliasChoices("image_variant", "flavour"),
        description="versions of the image that a leased machine ran the rows in; 'flavour' before 2026-11-27",
    )
    command: str
    started_at: str
    git_commit: str | None = None
    host: str = Field(description="what the machine is: processor, GPUs; no names or addresses")

    def spec(self, suite: Suite, row_id: str) -> RowSpec:
        """What the trainer is told of one row."""
        return RowSpec(
            suite=self.suite,
            recipe_version=self.recipe_version,
            row=row_id,
            card=self.card,
            size=self.size,
            length=self.length,
            weights=self.weights,
            data=self.data,
            data_sha256=self.data_sha256,
            input=self.input,
            settings=suite.settings(suite.row(row_id), self.card, self.gpus_per_node),
        )


class Predictions(Record):
    """What rows of a run would take at full size (predictions.json)."""

    predictions: tuple[Prediction, ...]


class RunFolder:
    """The folder of one run, results/<run-id>/."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def row(self, row_id: str) -> Path:
        """The folder of one row; it need not exist."""
        return self.path / self.read_run().suite / row_id

    def read_run(self) -> Run:
        """run.json; InputError when it is missing or of another schema version."""
        path = self.path / RUN_FILE
        try:
            return Run.model_validate_json(path.read_bytes())
        except OSError:
            raise InputError(f"{self.path}: not a run's folder (it has no {RUN_FILE})") from None
        except ValidationError as error:
            problem = error.errors()[0]
            raise InputError(f"{path}: not a run of schema version {RUN_SCHEMA_VERSION} ({problem['msg']})") from None

    def write_run(self, run: Run) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / RUN_FILE, run.model_dump_json(indent=2))

    def write_predictions(self, predictions: Iterable[Prediction]) -> None:
        kept = Predictions(predictions=tuple(predictions))
        write_atomically(self.path / PREDICTIONS_FILE, kept.model_dump_json(indent=2))

    def predictions(self) -> tuple[Prediction, ...]:
        """The predictions that were kept; none where there were none. InputError for another schema version."""
        path = self.path / PREDICTIONS_FILE
        if not path.is_file():
            return ()
        try:
            return Predictions.model_validate_json(path.read_bytes()).predictions
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            remedy = "remove the file, or run again"
            raise InputError(
                f"{path}: not predictions of schema version {PREDICTION_VERSION} ({problem}); {remedy}"
            ) from None

    def results(self) -> dict[str, Result]:
        """The results that are there, by row id, in the order of run.rows."""
        run = self.read_run()
        paths = {row: self.path / run.suite / row / RESULT_FILE for row in run.rows}
        packed = read_results(self.path / RESULTS_FILE) if (self.path / RESULTS_FILE).exists() else {}
        found = packed | {row: read_result(path) for row, path in paths.items() if path.exists()}
        return {row: found[row] for row in run.rows if row in found}
