"""A run from its options to its report: prepare, plan, predict, run rows, evaluate, report.

A suite is the data of one lab: its rows and its statements.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from experiments.errors import InputError
from experiments.history.durations import StoredTimes
from experiments.history.lease_length import expected_times
from experiments.inputs.dataset import DataSet
from experiments.inputs.download import DownloadCallback
from experiments.inputs.known_archive import known_archives, locate_archive
from experiments.prediction.service import predict_rows
from experiments.report.pages.index import write_index
from experiments.report.write import write_report
from experiments.results.provenance import git_commit
from experiments.results.run_folder import Run, RunFolder
from experiments.results.verdicts import Evaluation
from experiments.run_options import AUTO, RunOptions, recorded_values
from experiments.runners.admission import too_small_reason
from experiments.runners.base import RunnerOptions, Target
from experiments.runners.failed_results import write_rejected_result
from experiments.runners.local.resources import most_memory_first
from experiments.runners.local.runner import GRACE_S, clear_row_folder
from experiments.runners.local.warm import WORKER_MODULE
from experiments.runners.plan import PlannedRow, continue_run, plan
from experiments.runners.progress import View
from experiments.runners.remaining import ExpectedTime
from experiments.runners.resolve import LATEST, datasets_of, resolve
from experiments.runners.targets import target_named
from experiments.suites.cards import card_of_device, card_warnings
from experiments.suites.suite import Suite, suite_named
from experiments.system.files import cache_folder, point_link
from experiments.system.lock import lock_folder
from provision.words import number_with_noun


def _ignore_progress(done_bytes: int, total_bytes: int | None) -> None:
    """Accept the progress of a download without showing it."""


@dataclass(frozen=True)
class PreparedRun:
    """A run of one suite with resolved and checked options. Nothing has been written yet.

    options: the options, with values in place of 'auto'. size_was_auto: whether the user left the size at 'auto'.
    target: where the rows run: this machine, a cluster or leased nodes. run: the content to write to run.json.
    """

    options: RunOptions
    size_was_auto: bool
    suite: Suite
    target: Target
    run: Run
    data: DataSet

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.options.results / self.run.run_id)

    @property
    def host_memory_gib(self) -> float:
        return self.options.host_memory_gib or self.target.node.host_memory_gib

    def plan(self) -> list[PlannedRow]:
        """Return for each row whether it has to run.

        A result is outdated if it is from other library versions, another driver or another GPU. If the target cannot
        run a row with an outdated result, the row keeps this result.

        Raises InputError if a result has another schema version.
        """
        options, target = self.options, self.target
        planned = plan(self.suite, self.run, self.folder, options.rerun, target.software, options.keep_outdated)
        return [self._keep_result_if_rejected(row) if row.is_outdated else row for row in planned]

    def _keep_result_if_rejected(self, row: PlannedRow) -> PlannedRow:
        """Return ``row`` unchanged if the target can run it; else a plan that keeps the row's outdated result."""
        reason = self.target.rejection_reason(row.spec, self.host_memory_gib)
        return replace(row, must_run=False, why=f"cannot run here: {reason}") if reason else row

    def rows_left(self) -> list[PlannedRow]:
        """Return the planned rows that still have to run."""
        return [row for row in self.plan() if row.must_run]

    def with_target(self, target: Target, on_download: DownloadCallback = _ignore_progress) -> "PreparedRun":
        """Prepare the data at another target; return the same run for that target."""
        data = _prepare_data(self.options, self.suite, target, on_download)
        changes = {"data": data.data, "data_sha256": data.sha256, "host": target.node.description}
        return replace(self, target=target, data=data, run=self.run.model_copy(update=changes))


@dataclass(frozen=True)
class PlannedRun:
    """A prepared run and the plan of its rows.

    run: the content to write to run.json, including the rows of earlier commands with the same folder.
    """

    prepared: PreparedRun
    run: Run
    rows: tuple[PlannedRow, ...]


@dataclass(frozen=True)
class FinishedRun:
    """A run whose report is written. report: the path of the report's HTML page."""

    folder: Path
    report: Path
    evaluation: Evaluation


def run_suite(
    options: RunOptions,
    view: View,
    on_download: DownloadCallback = _ignore_progress,
    worker: str = WORKER_MODULE,
    grace_s: float = GRACE_S,
) -> FinishedRun:
    """Run the rows of one suite that have no result or have changed. The parameters are those of ``run_prepared``."""
    (finished,) = run_suites([options], view, on_download, worker, grace_s)
    return finished


def run_suites(
    all_options: Sequence[RunOptions],
    view: View,
    on_download: DownloadCallback = _ignore_progress,
    worker: str = WORKER_MODULE,
    grace_s: float = GRACE_S,
) -> Iterator[FinishedRun]:
    """Prepare runs of several suites at one target, then run them. Parameters: see ``prepare`` and ``run_prepared``."""
    with closing(connect_target(all_options[0])) as target:
        prepared = [prepare(options, target, on_download) for options in all_options]
        yield from run_prepared(prepared, view, worker, grace_s)


def run_prepared(
    prepared_runs: Sequence[PreparedRun], view: View, worker: str = WORKER_MODULE, grace_s: float = GRACE_S
) -> Iterator[FinishedRun]:
    """Run the rows that have no result or have changed, one suite after the other.

    Yields each run when its report is written. worker: name of the Python module that runs a row. grace_s: a row is
    killed this many seconds after its own time limit.

    Raises InputError before any row runs if a folder has a run with other options, or if no row of a suite can run.
    Raises NotReached before anything is written if the target does not answer. Raises Interrupted and NoFreeGpu if
    a runner raises them.
    """
    with ExitStack() as locks:
        for prepared in prepared_runs:
            locks.enter_context(lock_folder(prepared.folder.path))
        planned = [_plan_run(prepared) for prepared in prepared_runs]
        if any(row.must_run for run in planned for row in run.rows):
            prepared_runs[0].target.connect(view.print_line)
        for run in [_begin_run(run, view) for run in planned]:
            yield _finish_run(run, view, worker, grace_s)


def cancel_jobs(all_options: Sequence[RunOptions], view: View) -> list[str]:
    """Cancel the jobs of the runs; return the ids of the rows of these jobs.

    Raises InputError for a target without a queue.
    """
    with closing(connect_target(all_options[0])) as target:
        if not target.has_queue:
            site = all_options[0].site
            raise InputError(
                f"--cancel: --site {site} has no job queue; allowed: a site with a job queue, such as slurm"
            )
        return [row for options in all_options for row in target.cancel(prepare(options, target).folder, view)]


def options_per_suite(suites: Sequence[str], options: RunOptions) -> list[RunOptions]:
    """Return, for each suite that has requested rows, a copy of ``options`` with only the rows of this suite.

    Raises InputError for a row that no suite has.
    """
    names = list(dict.fromkeys(suites))
    if len(names) == 1:
        return [replace(options, suite=names[0])]
    if options.run_id is not None:
        raise InputError(f"--run-id {options.run_id}: allowed with one suite only")
    known = {name: [row.id for row in suite_named(name).rows] for name in names}
    for row in options.rows:
        if not any(row in rows for rows in known.values()):
            similar = ", ".join(get_close_matches(row, [row for rows in known.values() for row in rows]))
            remedy = f"similar: {similar}" if similar else "`testbed list SUITE` shows the rows"
            raise InputError(f"--row {row}: none of the suites {', '.join(names)} has this row; {remedy}")
    requested = {name: tuple(row for row in options.rows if row in known[name]) for name in names}
    return [replace(options, suite=name, rows=requested[name]) for name in names if requested[name] or not options.rows]


def connect_target(options: RunOptions) -> Target:
    """Connect to the target that the options name. The caller must close the target."""
    make_target = partial(target_named, options.site, options.profile, options.account)
    return make_target(image_variant=options.image_variant, in_container=options.in_container)


def prepare(options: RunOptions, target: Target, on_download: DownloadCallback = _ignore_progress) -> PreparedRun:
    """Resolve and check the options of one run at ``target``, and prepare its data there.

    ``on_download`` is called with the numbers of bytes downloaded so far and in total. Raises InputError for every user
    error that can be found before rows run.
    """
    suite = suite_named(options.suite)
    resolved = resolve(options, suite, target.node)
    data = _prepare_data(resolved, suite, target, on_download)
    run = _new_run(resolved, suite, data, target)
    target.check_disk(options.results, [run.spec(suite, row) for row in run.rows])
    target.rows_per_gpu(run, suite)
    return PreparedRun(resolved, options.size == AUTO, suite, target, run, data)


def report_run(prepared: PreparedRun) -> FinishedRun:
    """Evaluate and report the results in the run's folder.

    Raises InputError if the results are of a run with other options.
    """
    continue_run(prepared.folder, prepared.run, prepared.suite)
    return _write_report(prepared.folder)


def _write_report(folder: RunFolder) -> FinishedRun:
    report = write_report(folder)
    write_index(folder.path.parent)
    return FinishedRun(folder.path, report.page, report.evaluation)


def _prepare_data(options: RunOptions, suite: Suite, target: Target, on_download: DownloadCallback) -> DataSet:
    datasets = datasets_of(options, suite)
    if options.data in known_archives() and options.data not in datasets:
        allowed = f"rows that read it; the requested rows read {', '.join(sorted(datasets))}"
        raise InputError(f"--data {options.data}: allowed for {allowed}")
    source, sha256 = locate_archive(options.data, options.data_sha256, cache_folder(), on_download)
    return target.prepare_data(source, sha256, datasets, on_download)


def _new_run(options: RunOptions, suite: Suite, data: DataSet, target: Target) -> Run:
    choices = recorded_values(options) | {"data": data.data, "data_sha256": data.sha256}
    return Run(
        recipe_version=suite.version,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=git_commit(),
        host=target.node.description,
        **choices,
    )


def _plan_run(prepared: PreparedRun) -> PlannedRun:
    run = continue_run(prepared.folder, prepared.run, prepared.suite)
    return PlannedRun(prepared, run, tuple(prepared.plan()))


def _begin_run(planned: PlannedRun, view: View) -> PlannedRun:
    """Write run.json, and a result for each row that cannot run.

    Returns the run with only the rows that have to run and can run. Raises InputError if no row can run and none has a
    result.
    """
    prepared = planned.prepared
    folder = prepared.folder
    folder.write_run(planned.run)
    point_link(folder.path.with_name(LATEST), folder.path.name)
    _show_run(prepared, view)
    if prepared.options.predict_only:
        return replace(planned, rows=())
    for row in planned.rows:
        if not row.must_run:
            view.report_kept(row)
    rejected = _reject_rows(planned, view)
    if len(rejected) == len(planned.rows):
        write_report(folder)
        raise InputError("; ".join(dict.fromkeys(rejected.values())))
    return replace(planned, rows=tuple(row for row in planned.rows if row.must_run and row.row not in rejected))


def _show_run(prepared: PreparedRun, view: View) -> None:
    run, node = prepared.run, prepared.target.node
    rows = number_with_noun(len(run.rows), "row")
    summary = f"{prepared.suite.title}, {rows}, size {run.size} for {run.card}, on {node.description}"
    view.print_line(f"{prepared.folder.path}: {summary}")
    if (shared := prepared.target.rows_per_gpu(run, prepared.suite)) > 1:
        view.print_line(
            f"up to {shared} rows on a GPU at a time, each with the memory limit of {run.card}; times are not measured"
        )
    for line in _gpu_warnings(prepared):
        view.print_line(f"warning: {line}")
    if prepared.size_was_auto and run.size == "tiny" and node.gpus:
        view.print_line(f"size tiny, because {too_small_reason(node.gpus[0], run.card)}")


def _gpu_warnings(prepared: PreparedRun) -> list[str]:
    """Return why rows may fail or be slow on the node's GPUs."""
    run, suite = prepared.run, prepared.suite
    rows = (suite.settings(suite.row(row), run.card) for row in run.rows)
    bf16 = any(settings.precision.startswith("bf16") for settings in rows)
    cards = {card_of_device(gpu.name, gpu.memory_gib) for gpu in prepared.target.node.gpus}
    return [line for card in sorted(filter(None, cards)) for line in card_warnings(card, bf16)]


def _reject_rows(planned: PlannedRun, view: View) -> dict[str, str]:
    """Write a result for each row that the target cannot run; return the reasons by row id."""
    prepared = planned.prepared
    rejected: dict[str, str] = {}
    for row in planned.rows:
        if row.must_run and (reason := prepared.target.rejection_reason(row.spec, prepared.host_memory_gib)):
            rejected[row.row] = reason
            folder = clear_row_folder(prepared.folder.row_folder(row.spec))
            view.report_end(row.spec, write_rejected_result(folder, row.spec, prepared.target.node, reason))
    return rejected


def _finish_run(planned: PlannedRun, view: View, worker: str, grace_s: float) -> FinishedRun:
    """Predict and run the rows, evaluate their results and write the report. worker, grace_s: see ``run_prepared``."""
    prepared, folder, target = planned.prepared, planned.prepared.folder, planned.prepared.target
    if prepared.options.predict or prepared.options.predict_only:
        predict_rows(prepared.suite, planned.run, folder, view)
    if planned.rows:
        options = RunnerOptions(worker, grace_s, prepared.host_memory_gib, _show_expected_times(planned, view))
        runner = target.runner(folder, prepared.data, view, options)
        runner.run(target.in_start_order(planned.rows, prepared.suite))
    return _write_report(folder)


def _show_expected_times(planned: PlannedRun, view: View) -> dict[str, ExpectedTime]:
    """Print how long the rows take at full size, if these times are known; return the expected times by row id.

    Afterwards, ``view`` shows the expected time of each row. Times on shared GPUs are not known.
    """
    prepared, target = planned.prepared, planned.prepared.target
    if planned.run.size == "tiny":
        return {}
    stored = StoredTimes.read(prepared.options.results, prepared.folder.predictions())
    specs = most_memory_first([row.spec for row in target.in_start_order(planned.rows, prepared.suite)])
    gpus = target.max_nodes * len(target.node.gpus)
    expected = expected_times(
        {prepared.suite.suite: specs}, target.node, gpus, stored, rows_are_jobs=not target.starts_warm
    )
    shared = target.rows_per_gpu(planned.run, prepared.suite) > 1
    view.print_line(expected.rows_summary + ("; these times are for one row at a time on a GPU" if shared else ""))
    if shared:
        return {}
    pairs = zip(specs, expected.rows[prepared.suite.suite], strict=True)
    times = {spec.row: time for spec, time in pairs if time}
    view.set_expected_times({row: (time.low_s, time.high_s) for row, time in times.items()})
    return {row: ExpectedTime(time.expected_s, time.start_s) for row, time in times.items()}
