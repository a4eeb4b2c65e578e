"""From nothing to a judged report and a released node: doctor, predict, slots, lease, configure, run, release.

Every stage finds what an earlier run of the same choices left, so that one that was killed goes on where it was: leases
are in the ledger, a node that is set up is not changed, jobs are followed, rows that have results are kept.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

from experiments.errors import InputError
from experiments.pipeline import Done, RunOptions, kept, rows_left, run_suites, settled
from experiments.prediction.service import rows_asked, traced
from experiments.results.wording import clock
from experiments.runners.progress import View
from provision.availability.matching import fitting
from provision.availability.times import length_in_words
from provision.configure.playbook import Setup, configure
from provision.errors import ForeignLease, LeaseMismatch
from provision.leasing import lease, release
from provision.leasing.doctor import examine
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import LeaseRequest, slot_in_words
from provision.leasing.reserve import choose
from provision.models import Gpu, Node
from provision.sites.base import Testbed

STAGES = ("doctor", "predict", "slots", "lease", "configure", "run", "release")
"""In their order; judging and reporting follow each suite's run."""


class NotReady(InputError):
    """A check of doctor failed; the message has each with its remedy."""


class TooLong(InputError):
    """The lease wanted is longer than the budget."""


@dataclass(frozen=True)
class Reproduction:
    """What is to be reproduced: suites, on the machines of an order at a site, set up so.

    most: the longest that machines may be held. keep: do not release them in the end.
    """

    suites: tuple[RunOptions, ...]
    lease_request: LeaseRequest
    site: Testbed
    setup: Setup
    most: timedelta | None = None
    keep: bool = False
    watch: bool = False


@dataclass
class Stages:
    """Says which stage begins, and how long each took."""

    view: View
    took_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.view.says(f"[{STAGES.index(name) + 1}/{len(STAGES)}] {name}")
        begun = time.monotonic()
        try:
            yield
        finally:
            self.took_s[name] = time.monotonic() - begun

    def summary(self) -> str:
        return ", ".join(f"{name} {clock(seconds)}" for name, seconds in self.took_s.items())


def reproduce(wanted: Reproduction, reconciler: Reconciler, view: View, confirm: Callable[[str], None]) -> list[Done]:
    """Do it all. ``confirm`` is told what it will cost before it is leased, and raises where it is not wanted.

    What was leased is released whatever happens, unless it is to be kept or was held for something else. Raises
    NotReady, TooLong, and what the stages raise.
    """
    _check_budget(wanted)
    lease_request, stages, site = wanted.lease_request, Stages(view), wanted.site
    with stages.stage("doctor"):
        _check(wanted, reconciler, view)
    node = _foreseen_node(wanted, reconciler)
    suites = [settled(options, node) for options in wanted.suites]
    held = reconciler.journal.active_lease(lease_request.name)
    if not any(rows_left(options, node) for options in suites):
        view.says("every row has its result already; --rerun runs them again")
        if held and not wanted.keep:
            with stages.stage("release"):
                _release(site, reconciler, lease_request.name, view)
        return [kept(options, node) for options in suites]
    if any(options.predict for options in suites):
        with stages.stage("predict"):
            _predict(suites, view)
    if not held:
        with stages.stage("slots"):
            slot = slot_in_words(choose(site, reconciler, lease_request.requirements, lease_request.at_once)[0])
            view.says(slot)
        confirm(slot)
    try:
        with stages.stage("lease"):
            machines = lease.lease(site, reconciler, lease_request, watch=wanted.watch).machines
        with stages.stage("configure"):
            configure(machines, wanted.setup, view.says)
        with stages.stage("run"):
            return list(run_suites(suites, view))
    except (LeaseMismatch, ForeignLease):
        wanted = replace(wanted, keep=True)
        raise
    finally:
        if not wanted.keep:
            with stages.stage("release"):
                _release(site, reconciler, lease_request.name, view)
        view.says(stages.summary())


def plan(wanted: Reproduction, reconciler: Reconciler) -> list[str]:
    """What would be asked of which service and machine, a line each; nothing is sent. Raises TooLong."""
    _check_budget(wanted)
    node, name = _foreseen_node(wanted, reconciler), wanted.lease_request.name
    left = [(options.suite, rows_left(settled(options, node), node)) for options in wanted.suites]
    return [
        *lease.plan(wanted.site, reconciler, wanted.lease_request),
        f"ansible: set up the machines of {name}, image {wanted.setup.image_variant}",
        *(
            f"slurm on {name}: run {len(rows)} row(s) of {suite}, bring the results home"
            for suite, rows in left
            if rows
        ),
        *([] if wanted.keep else [f"release {name}: servers, volumes, addresses, key and lease"]),
    ]


def _check_budget(wanted: Reproduction) -> None:
    length = wanted.lease_request.requirements.length
    if wanted.most is not None and length > wanted.most:
        raise TooLong(f"--max-hours {length_in_words(wanted.most)}: the lease would be of {length_in_words(length)}")


def _check(wanted: Reproduction, reconciler: Reconciler, view: View) -> None:
    checks = examine(wanted.site.name, wanted.lease_request.key.file, reconciler)
    for check in checks:
        view.says(check.line)
    if failed := [f"{check.name}: {check.text}" for check in checks if not check.passed]:
        raise NotReady("; ".join(failed))


def _foreseen_node(wanted: Reproduction, reconciler: Reconciler) -> Node:
    """What the machine will be, as far as the site tells before it is leased."""
    host = fitting(reconciler.query(wanted.site.hosts), wanted.lease_request.requirements)[0]
    gpus = tuple(Gpu(index, host.gpu_model, host.gpu_memory_gib, "") for index in range(host.gpus))
    return Node(f"a node {host.node_type} at {host.site}", gpus, 0, 0.0, "")


def _predict(suites: Sequence[RunOptions], view: View) -> None:
    """What will become of the rows, by prediction; a run says so of each, and keeps it."""
    for options in suites:
        specs = [spec for spec in rows_asked(options.suite, options.card) if spec.row in (options.rows or (spec.row,))]
        found = traced(specs, view.says, lambda spec, why: view.says(f"not predicted: {why}"))
        verdicts = [prediction.verdict for prediction in found]
        counted = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
        view.says(f"{options.suite} on {options.card}: predicted {counted or 'nothing'}")


def _release(site: Testbed, reconciler: Reconciler, name: str, view: View) -> None:
    active_lease = reconciler.journal.active_lease(name)
    if active_lease is None:
        return
    used = release.state(site, reconciler, active_lease).used_su
    release.release(site, reconciler, active_lease)
    view.says(f"{name} is released; it cost {'an unknown number of' if used is None else f'{used:.1f}'} service units")
