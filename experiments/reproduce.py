"""Reproduce suites on leased machines: doctor, predict, slots, lease, configure, run, release.

Each stage continues the work of an earlier, interrupted command with the same options: the journal lists the leases, a
configured node is not changed, jobs are tracked, and rows with results do not run again.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

from experiments.errors import InputError
from experiments.history.durations import StoredTimes
from experiments.history.lease_length import MARGIN, ExpectedTimes, expected_times
from experiments.history.lease_record import LeaseRecord, append_record, earlier_leases, read_records
from experiments.pipeline import FinishedRun, PreparedRun, connect_target, prepare, report_run, run_prepared
from experiments.prediction.service import select_rows, trace_rows
from experiments.results.predictions import Prediction
from experiments.results.run_folder import RUN_FILE
from experiments.results.wording import format_duration
from experiments.run_options import RunOptions
from experiments.runners.progress import View
from experiments.runners.targets import expected_node, expected_target
from provision.availability.matching import matching_hosts
from provision.availability.times import length_in_words
from provision.configure.end_when_idle import set_up_end_when_idle
from provision.configure.playbook import Setup, configure
from provision.errors import UNTOUCHED_LEASE_ERRORS
from provision.leasing import lease as leasing
from provision.leasing import release as releasing
from provision.leasing.account import require_lasting_credential
from provision.leasing.cost import cost_in_words, report_cost_on_exit, running_cost
from provision.leasing.doctor import check_site
from provision.leasing.journal import Machine
from provision.leasing.past import past_leases
from provision.leasing.reconciler import Reconciler
from provision.leasing.release import lease_deletion_message
from provision.leasing.request import LeaseRequest, slot_in_words
from provision.leasing.reserve import choose_slots
from provision.models import Host
from provision.sites.base import LeasingSite, SimulatedServers
from provision.words import number_with_noun

STAGES = ("doctor", "predict", "slots", "lease", "configure", "run", "release")
"""The stages in order. The stage "run" also evaluates and reports each suite."""


class PreflightFailed(InputError):
    """A preflight check failed. The message states each failed check and how to fix it."""


class LeaseTooLong(InputError):
    """The requested lease is longer than --max-hours allows."""


class LeaseEnded(InputError):
    """The lease of an earlier command ended itself or was deleted. The message states where the results are."""


@dataclass(frozen=True)
class Reproduction:
    """Suites to reproduce, the lease to run them on, and the setup of its machines.

    run_options: the options of the run of each suite. max_length: longest allowed lease; None: no limit. choose_length:
    if possible, choose the length of the lease from the expected times of the rows. keep: do not release the machines
    at the end. watch: wait until a time slot is free.
    """

    run_options: tuple[RunOptions, ...]
    lease_request: LeaseRequest
    site: LeasingSite
    setup: Setup
    max_length: timedelta | None = None
    choose_length: bool = False
    keep: bool = False
    watch: bool = False


@dataclass
class StageTimer:
    """Prints the name of each stage and measures its time."""

    view: View
    seconds_by_stage: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.view.print_line(f"[{STAGES.index(name) + 1}/{len(STAGES)}] {name}")
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds_by_stage[name] = time.monotonic() - started

    def summary(self) -> str:
        return ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in self.seconds_by_stage.items())


def reproduce(
    reproduction: Reproduction, reconciler: Reconciler, view: View, confirm: Callable[[str], None]
) -> list[FinishedRun]:
    """Run all stages.

    Calls ``confirm`` with the time slot and its cost before it creates the lease. To cancel, ``confirm`` raises an
    exception. The lease is always released, unless ``keep`` is set or the lease belongs to another request.
    Raises PreflightFailed, LeaseTooLong, and the errors of the stages.
    """
    if not reproduction.choose_length:
        _check_budget(reproduction)
    lease_request, timer, site = reproduction.lease_request, StageTimer(view), reproduction.site
    with timer.stage("doctor"):
        _run_preflight_checks(reproduction, reconciler, view)
    host = _expected_host(reproduction, reconciler)
    runs = _prepare_runs(reproduction, host)
    active = reconciler.journal.active_lease(lease_request.name)
    if active and (why := lease_deletion_message(reconciler, active)):
        with timer.stage("release"):
            _release(site, reconciler, lease_request.name, view)
        raise LeaseEnded(f"lease {lease_request.name} {why}")
    if not any(run.rows_left() for run in runs):
        view.print_line("every row already has a result; --rerun runs the rows again")
        if active and not reproduction.keep:
            with timer.stage("release"):
                _release(site, reconciler, lease_request.name, view)
        return [report_run(run) for run in runs]
    predictions: list[Prediction] = []
    times: ExpectedTimes | None = None
    if any(run.options.predict for run in runs):
        with timer.stage("predict"):
            predictions = _show_predictions(runs, view)
    if not active:
        with timer.stage("slots"):
            times = _expected_times(host.node_type, runs, predictions)
            view.print_line(times.summary)
            reproduction = _with_lease_length(reproduction, times, view.print_line)
            lease_request = reproduction.lease_request
            slot = slot_in_words(
                choose_slots(site, reconciler, lease_request.requirements, lease_request.starts_now)[0]
            )
            view.print_line(slot)
        require_lasting_credential(site, reconciler, lease_request.requirements)
        confirm(slot)
    finished = _run_on_lease(reproduction, runs, reconciler, timer)
    if times and not reproduction.keep:
        _record_lease(reproduction, reconciler, host.node_type, times, timer)
    return finished


def _record_lease(
    reproduction: Reproduction, reconciler: Reconciler, node_type: str, times: ExpectedTimes, timer: StageTimer
) -> None:
    """Record and show the time and cost of the lease, and the time that was predicted before the lease began."""
    name = reproduction.lease_request.name
    past = [one for one in past_leases(reconciler.journal.entries(), reconciler.clock.now()) if one.name == name]
    predicted_run_s = times.total_time().expected_s
    if not past or past[-1].end <= past[-1].start or not predicted_run_s:
        return
    record = LeaseRecord(
        name=name,
        node_type=node_type,
        su_per_hour=past[-1].su_per_hour,
        predicted_setup_s=times.leases.setup.total_seconds(),
        predicted_run_s=predicted_run_s,
        expected_run_s=predicted_run_s / times.leases.run_factor,
        used_s=(past[-1].end - past[-1].start).total_seconds(),
        before_request_s=past[-1].time_before_request.total_seconds(),
        run_s=timer.seconds_by_stage["run"],
    )
    append_record(reproduction.run_options[0].results, record)
    timer.view.print_line(record.words)


def _run_on_lease(
    reproduction: Reproduction, runs: Sequence[PreparedRun], reconciler: Reconciler, timer: StageTimer
) -> list[FinishedRun]:
    """Lease machines, configure them and run the suites.

    Always releases the lease, unless ``keep`` is set or the lease belongs to another request.
    """
    site, lease_request, view = reproduction.site, reproduction.lease_request, timer.view
    release = not reproduction.keep
    try:
        with timer.stage("lease"):
            machines = leasing.lease(site, reconciler, lease_request, watch=reproduction.watch).machines
        with timer.stage("configure"):
            if lease_request.end_when_idle:
                set_up_end_when_idle(site, reconciler, lease_request.name, lease_request.end_when_idle)
            _configure(site, machines, reproduction.setup, view)
        with timer.stage("run"):
            return _run_on_machines(runs, view)
    except UNTOUCHED_LEASE_ERRORS:
        release = False
        raise
    finally:
        if release:
            with timer.stage("release"):
                _release(site, reconciler, lease_request.name, view)
        elif active := reconciler.journal.active_lease(lease_request.name):
            view.print_line(running_cost(reconciler, active))
        view.print_line(timer.summary())


def _configure(site: LeasingSite, machines: Sequence[Machine], setup: Setup, view: View) -> None:
    if isinstance(site, SimulatedServers):
        view.print_line("demonstration: no node is configured; the rows run as tiny models on this machine")
    else:
        configure(machines, setup, view.print_line)


def planned_operations(reproduction: Reproduction, reconciler: Reconciler) -> list[str]:
    """Return one line for each operation that ``reproduce`` would perform, and change nothing. Raises LeaseTooLong."""
    host, name = _expected_host(reproduction, reconciler), reproduction.lease_request.name
    runs = _prepare_runs(reproduction, host)
    left = [(run, rows) for run in runs if (rows := run.rows_left())]
    lines: list[str] = []
    if left and not reconciler.journal.active_lease(name):
        times = _expected_times(host.node_type, runs, ())
        lines.append(times.summary)
        reproduction = _with_lease_length(reproduction, times, lines.append)
    else:
        _check_budget(reproduction)
    return [
        *leasing.planned_calls(reproduction.site, reconciler, reproduction.lease_request),
        f"ansible: configure the machines of {name}, image {reproduction.setup.image_variant}",
        *(
            f"slurm on {name}: run {number_with_noun(len(rows), 'row')} of {run.suite.suite}, download the results"
            for run, rows in left
        ),
        *([] if reproduction.keep else [f"release {name}: servers, volumes, addresses, key and lease"]),
        *lines,
    ]


def _expected_times(node_type: str, runs: Sequence[PreparedRun], predictions: Sequence[Prediction]) -> ExpectedTimes:
    """Return the expected times of the rows that have no result yet, and of the lease's setup."""
    results, target = runs[0].options.results, runs[0].target
    stored = StoredTimes.read(results, predictions)
    left = {run.suite.suite: [row.spec for row in run.rows_left()] for run in runs}
    specs = {suite: rows for suite, rows in left.items() if rows}
    leases = earlier_leases(read_records(results), node_type)
    gpus = target.max_nodes * len(target.node.gpus)
    return expected_times(specs, target.node, gpus, stored, rows_are_jobs=True, leases=leases)


def _with_lease_length(reproduction: Reproduction, times: ExpectedTimes, report: Callable[[str], None]) -> Reproduction:
    """Return the reproduction. If its ``choose_length`` is set, its lease gets the length that the rows need.

    Raises LeaseTooLong if the lease is longer than --max-hours, and LeaseTooShort if the rows need more time.
    """
    length = times.lease_length() if reproduction.choose_length else None
    if length:
        words = f"{length_in_words(length)}, for setup and rows with a margin of {MARGIN:.0%}"
        report(f"length of the lease: {words}; --hours sets another length")
        request = reproduction.lease_request
        requirements = replace(request.requirements, length=length)
        reproduction = replace(reproduction, lease_request=replace(request, requirements=requirements))
    _check_budget(reproduction)
    times.require_to_end_within(reproduction.lease_request.requirements.length)
    return reproduction


def _check_budget(reproduction: Reproduction) -> None:
    length, budget = reproduction.lease_request.requirements.length, reproduction.max_length
    if budget is not None and length > budget:
        raise LeaseTooLong(
            f"--max-hours {length_in_words(budget)}: the lease would be {length_in_words(length)} long; "
            "shorten --hours or raise --max-hours"
        )


def _run_preflight_checks(reproduction: Reproduction, reconciler: Reconciler, view: View) -> None:
    lease_request = reproduction.lease_request
    checks = check_site(reproduction.site.name, lease_request.key.file, reconciler, lease_request.image)
    for check in checks:
        view.print_line(check.line)
    if failed := [f"{check.name}: {check.text}" for check in checks if check.status == "failed"]:
        raise PreflightFailed("; ".join(failed))


def _expected_host(reproduction: Reproduction, reconciler: Reconciler) -> Host:
    """Return the first host of the site that meets the requirements. The leased hosts will be like this host."""
    return matching_hosts(reconciler.query(reproduction.site.hosts), reproduction.lease_request.requirements)[0]


def _prepare_runs(reproduction: Reproduction, host: Host) -> list[PreparedRun]:
    """Prepare the runs for the node that will be leased."""
    count = reproduction.lease_request.requirements.host_count
    target = expected_target(expected_node(host), count, reproduction.setup.image_variant)
    return [_with_recorded_data(prepare(options, target)) for options in reproduction.run_options]


def _with_recorded_data(run: PreparedRun) -> PreparedRun:
    """Return the run with the data folder that its run.json records, if the data has the same SHA-256; else ``run``.

    The data folder on the node is not known before the lease. Results that were stored with the recorded folder would
    be outdated if the run had another folder.
    """
    if run.run.data_sha256 is None or not (run.folder.path / RUN_FILE).exists():
        return run
    earlier = run.folder.read_run()
    if earlier.data_sha256 != run.run.data_sha256:
        return run
    return replace(run, run=run.run.model_copy(update={"data": earlier.data}))


def _show_predictions(runs: Sequence[PreparedRun], view: View) -> list[Prediction]:
    """Predict the rows before anything is leased; show how many rows have each predicted outcome."""
    all_predictions: list[Prediction] = []
    for run in runs:
        suite, card = run.suite.suite, run.run.card
        specs = [spec for spec in select_rows(suite, card) if spec.row in run.run.rows]
        predictions = trace_rows(
            specs, view.print_line, lambda spec, reason: view.print_line(f"not predicted: {reason}")
        )
        outcomes = [prediction.predicted_outcome for prediction in predictions]
        counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes))
        view.print_line(f"{suite} on {card}: predicted {counts or 'nothing'}")
        all_predictions += predictions
    return all_predictions


def _run_on_machines(runs: Sequence[PreparedRun], view: View) -> list[FinishedRun]:
    """Run the suites on the leased machines."""
    with closing(connect_target(runs[0].options)) as target:
        return list(run_prepared([run.with_target(target) for run in runs], view))


def _release(site: LeasingSite, reconciler: Reconciler, name: str, view: View) -> None:
    """Release the active lease of this name, if there is one, and show its cost."""
    active_lease = reconciler.journal.active_lease(name)
    if active_lease is None:
        return
    used = cost_in_words(site, reconciler, active_lease)
    with report_cost_on_exit(reconciler, name):
        releasing.release(site, reconciler, active_lease)
    view.print_line(f"{name} is released; cost: {used}")
