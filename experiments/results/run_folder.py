"""A run: its options, and the folder of its results.

results/<run-id>/
    run.json                      options, and the machine that the run was made on
    suite.yaml                    copy of the suite, if it is not one of this package
    predictions.json              predicted memory of the rows at full size
    <suite>/<row>/result.json     one result per row, written last: a row without it has not finished
    <suite>/<row>/notebook.ipynb  the executed notebook
    <suite>/<row>/notebook.html   the executed notebook as a page without scripts
    <suite>/<row>/log.txt         output of the row, with the traceback of a failure
    <suite>/<row>/telemetry.csv   GPU and host metrics over time
    verdict.json report.html junit.xml SHA256SUMS
    results.jsonl                 compact form, in place of the folders of rows: one result per line
    telemetry/<row>.csv           compact form: telemetry.csv of a row
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, ValidationError

from experiments.errors import InputError
from experiments.results.gpu_load import MIN_STEADY_S, STEADY_UTILIZATION, gpu_load, read_samples
from experiments.results.predictions import PREDICTION_VERSION, Prediction
from experiments.results.schema import (
    RESULT_FILE,
    RESULTS_FILE,
    TELEMETRY_FILE,
    TELEMETRY_FOLDER,
    Record,
    Result,
    read_result,
    read_results,
)
from experiments.suites.choices import Input, Length, Size, Weights
from experiments.suites.row_spec import RowSpec
from experiments.suites.schema import ID_PATTERN, NAME_PATTERN
from experiments.suites.suite import Suite, read_suite, suite_named, suite_names, user_suite_file
from experiments.suites.yaml_schema import error_message
from experiments.system.files import write_atomically
from provision.files import read_bytes, read_text

RUN_FILE = "run.json"
SUITE_FILE = "suite.yaml"
VERDICT_FILE = "verdict.json"
REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
JUNIT_FILE = "junit.xml"
CHECKSUMS_FILE = "SHA256SUMS"
PREDICTIONS_FILE = "predictions.json"
RUN_SCHEMA_VERSION: Literal[1] = 1
MAX_ROWS = 1000
MAX_NAMED_RUNS = 5
"""Maximum number of runs that an error message names."""


def row_path(suite: str, row: str) -> str:
    """Return the folder of a row, relative to the run's folder."""
    return f"{suite}/{row}"


class Run(Record):
    """Options and origin of a run (run.json)."""

    schema_version: Literal[1] = Field(default=RUN_SCHEMA_VERSION, description="version of this schema")
    run_id: str = Field(description="name of the run's folder")
    suite: str = Field(pattern=NAME_PATTERN, description="name of the suite")
    recipe_version: int = Field(ge=0, le=10**9, description="version of the suite")
    rows: tuple[Annotated[str, Field(pattern=ID_PATTERN)], ...] = Field(
        max_length=MAX_ROWS, description="the requested rows, in the suite's order"
    )
    site: str = Field(description="where the rows run: local, slurm, or a site that leases nodes")
    profile: str | None = Field(default=None, description="with site slurm: name or file of the cluster's profile")
    card: str = Field(description="GPU model that the rows target")
    size: Size = Field(description="full: the lab's models; tiny: tiny models of the same architecture")
    length: Length = Field(
        description="as-taught: all steps of the lab; verdict: as many as the evaluation needs; peak: as many as the "
        "peak of memory needs"
    )
    weights: Weights = Field(description="random, or pretrained from the Hugging Face hub")
    data: str = Field(description="'synthetic', 'hub', or the folder of a prepared data set")
    data_sha256: str | None = Field(default=None, description="SHA-256 of the prepared data set, hexadecimal")
    input: Input = Field(description="input of the models; with-image: captioning models also receive the image")
    gpus_per_node: int | None = Field(
        default=None, ge=1, le=10**6, description="rows that need more GPUs per node are scaled down to this number"
    )
    share_gpus: bool = Field(
        default=False, description="rows share a GPU that emulates a smaller card; their times are not measured"
    )
    in_container: bool = Field(default=False, description="with site local: rows run in the project's image")
    image_variant: str = Field(
        default="current",
        validation_alias=AliasChoices("image_variant", "flavour"),
        description="library versions of the image; named 'flavour' before 2026-11-27",
    )
    command: str = Field(description="command line that started the run")
    started_at: str = Field(description="UTC, ISO 8601")
    git_commit: str | None = Field(default=None, description="commit of the checkout; None outside one")
    host: str = Field(description="processor and GPUs of the machine; no names or addresses")

    def spec(self, suite: Suite, row_id: str) -> RowSpec:
        """Return the specification of one row, which the ranks of the row read.

        A tiny model whose loss is compared runs all steps of the lab. A row with a statement on the utilization of its
        GPUs runs long enough to measure it.
        """
        shared = {name: getattr(self, name) for name in RowSpec.model_fields.keys() & Run.model_fields.keys()}
        settings = suite.settings(suite.row(row_id), self.card, self.gpus_per_node)
        if self.size == "tiny" and row_id in suite.rows_with_losses_of_tiny_models():
            shared["length"] = "as-taught"
        if (self.size, self.length) == ("full", "verdict") and row_id in suite.rows_with_utilization():
            shared["steady_s"] = MIN_STEADY_S
        return RowSpec(row=row_id, settings=settings, model=suite.model_in_suite(settings), **shared)


class Predictions(Record):
    """Predicted memory and time of a run's rows at full size (predictions.json)."""

    predictions: tuple[Prediction, ...] = Field(description="one per row")


class RunFolder:
    """The folder of one run, results/<run-id>/."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def row_folder(self, spec: RowSpec) -> Path:
        """Return the folder of a row; it need not exist."""
        return self.path / row_path(spec.suite, spec.row)

    def row_folder_named(self, row_id: str) -> Path:
        """Return the folder of the row with this id; it need not exist. Reads the suite's name from run.json."""
        return self.path / row_path(self.read_run().suite, row_id)

    def read_run(self) -> Run:
        """Read run.json. Raises InputError when it is missing or of another schema version."""
        path = self.path / RUN_FILE
        try:
            return Run.model_validate_json(read_bytes(path))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{self.path}: not a run's folder (it has no {RUN_FILE}){self._runs_nearby()}") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        except ValidationError as error:
            problem = error_message(error.errors()[0])
            why = f"not a run of schema version {RUN_SCHEMA_VERSION} ({problem})"
            raise InputError(f"{path}: {why}; restore the file, or run the suite again") from None

    def _runs_nearby(self) -> str:
        """Return the end of an error message: the first runs in this folder, or next to a folder that is missing."""
        folder = self.path if self.path.exists() else self.path.parent
        runs = sorted(path.parent.name for path in folder.glob(f"*/{RUN_FILE}") if not path.parent.is_symlink())
        if runs:
            more = f" and {len(runs) - MAX_NAMED_RUNS} more" if len(runs) > MAX_NAMED_RUNS else ""
            return f"; runs in {folder}: {', '.join(runs[:MAX_NAMED_RUNS])}{more}"
        return "" if self.path.exists() else "; `testbed run` creates one"

    def write_run(self, run: Run) -> None:
        """Write run.json, and a copy of a suite that is not one of this package."""
        self.path.mkdir(parents=True, exist_ok=True)
        if file := user_suite_file(run.suite):
            write_atomically(self.path / SUITE_FILE, read_text(file))
        write_atomically(self.path / RUN_FILE, run.model_dump_json(indent=2))

    def suite(self) -> Suite:
        """Return the run's suite: the current suite of that name, else the copy in this folder.

        Raises InputError if there is neither.
        """
        name = self.read_run().suite
        if name in suite_names() or not (self.path / SUITE_FILE).is_file():
            return suite_named(name)
        return read_suite(self.path / SUITE_FILE, name)

    def write_predictions(self, predictions: Iterable[Prediction]) -> None:
        stored = Predictions(predictions=tuple(predictions))
        write_atomically(self.path / PREDICTIONS_FILE, stored.model_dump_json(indent=2))

    def predictions(self) -> tuple[Prediction, ...]:
        """Return the stored predictions, none without a file. Raises InputError for another schema version."""
        path = self.path / PREDICTIONS_FILE
        if not path.is_file():
            return ()
        try:
            return Predictions.model_validate_json(read_bytes(path)).predictions
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        except ValidationError as error:
            problem = error_message(error.errors()[0])
            remedy = "remove the file, or run the suite again"
            raise InputError(
                f"{path}: does not contain predictions of schema version {PREDICTION_VERSION} ({problem}); {remedy}"
            ) from None

    def results(self) -> dict[str, Result]:
        """Return the results of finished rows by row id, in the order of run.rows.

        GPU load that an earlier version of this program did not compute is added from telemetry.csv.
        """
        run = self.read_run()
        paths = {row: self.path / row_path(run.suite, row) / RESULT_FILE for row in run.rows}
        compact = read_results(self.path / RESULTS_FILE) if (self.path / RESULTS_FILE).exists() else {}
        stored = compact | {row: read_result(path) for row, path in paths.items() if path.exists()}
        return {row: self._with_gpu_load(stored[row]) for row in run.rows if row in stored}

    def _with_gpu_load(self, result: Result) -> Result:
        if result.device.kind != "cuda" or STEADY_UTILIZATION in result.telemetry:
            return result
        path = self.telemetry_file(result.spec.row)
        load = gpu_load(read_samples(path), result.speed, result.steady_interval_s) if path else {}
        return result.model_copy(update={"telemetry": load | result.telemetry}) if load else result

    def telemetry_file(self, row: str) -> Path | None:
        """Return the path of a row's telemetry, in its folder or in compact form; None if there is none."""
        places = (self.row_folder_named(row) / TELEMETRY_FILE, self.path / TELEMETRY_FOLDER / f"{row}.csv")
        return next((path for path in places if path.is_file()), None)


def run_folders(root: Path) -> list[RunFolder]:
    """Return the runs at or under ``root``, which may be a link such as latest; links under it are not followed.

    Raises InputError if there is none.
    """
    paths = sorted(path.parent for path in root.rglob(RUN_FILE))
    if not paths:
        raise InputError(f"{root}: no run's folder here (no folder has a {RUN_FILE})")
    return [RunFolder(path) for path in paths]
