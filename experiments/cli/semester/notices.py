"""Send messages about finished runs and about leases."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import inf
from typing import TYPE_CHECKING

from experiments.cli.output import say
from experiments.notify.send import Notifier

if TYPE_CHECKING:
    from experiments.pipeline import FinishedRun
    from provision.leasing.journal import Journal
    from provision.leasing.release import LeaseSnapshot

SOON = timedelta(hours=1)
"""A message is sent this long before a lease begins or ends."""
QUERY_INTERVAL_S = 300.0


def send_run_messages(runs: "Iterable[FinishedRun]", notifier: Notifier) -> "Iterator[FinishedRun]":
    """Send a message about each run when it is finished, then yield the run."""
    from experiments.notify.messages import run_message
    from experiments.report.identity import find_previous_run

    for finished_run in runs:
        if notifier.has_addresses:
            previous_run = find_previous_run(finished_run.folder, finished_run.evaluation.run)
            send(notifier, *run_message(finished_run.evaluation, previous_run.statuses if previous_run else None))
        yield finished_run


def notify_of_leases(
    states: "Iterable[LeaseSnapshot]", notifier: Notifier, now: datetime, within: timedelta, above_su: float | None
) -> None:
    """Send a message for each lease that begins or ends soon, or has cost more than ``above_su`` service units.

    within: how long after ``now`` is still "soon". If above_su is None, no message is about the cost.
    """
    from experiments.notify.messages import lease_messages

    for message in lease_messages(states, now, within, above_su):
        send(notifier, *message)


class LeaseWatch:
    """Sender of messages about the active leases. Each message is sent once, as soon as it applies.

    Sites are queried every five minutes, and at once when the journal records a new lease, or a new start or end of a
    lease. Between two queries, costs are computed from the elapsed time. If a site does not answer, the last known
    state of its leases is used until the next query. above_su: cost in service units above which a message is sent;
    None: no limit.
    """

    def __init__(self, send_message: Callable[[str, str], None], above_su: float | None) -> None:
        self._send_message, self._above_su = send_message, above_su
        self._sent: set[tuple[str, str]] = set()
        self._queried_s = -inf
        self._recorded: object = None
        self._states: list[LeaseSnapshot] = []

    def __call__(self) -> None:
        """Query the sites if a query is due, and send new messages. Ignores errors of sites and of the journal."""
        from experiments.notify.messages import lease_messages
        from provision.errors import ProvisionError

        with suppress(ProvisionError):
            self._query_if_due()
        now = datetime.now(UTC)
        for state in self._states:
            tag = state.active_lease.tag
            for message in lease_messages([_with_cost_at(state, now)], now, SOON, self._above_su):
                if (tag, message.text) not in self._sent:
                    self._sent.add((tag, message.text))
                    self._send_message(*message)

    def _query_if_due(self) -> None:
        from provision.leasing.journal import Journal

        journal = Journal()
        active = journal.active_leases().values()
        recorded = [(one.tag, journal.recorded_start(one), journal.recorded_end(one)) for one in active]
        if recorded == self._recorded and time.monotonic() - self._queried_s < QUERY_INTERVAL_S:
            return
        self._recorded, self._queried_s = recorded, time.monotonic()
        self._states = _query_active_leases(journal, self._states)


def _query_active_leases(journal: "Journal", previous_states: "Sequence[LeaseSnapshot]") -> "list[LeaseSnapshot]":
    """Return the states of the active leases as their sites report them.

    previous_states: states from the last query, used for a site that does not answer at once.
    """
    from provision.clock import NoWaitClock
    from provision.leasing.reconciler import Reconciler
    from provision.leasing.release import LeaseSnapshot, active_lease_states

    reconciler = Reconciler(journal, NoWaitClock(), lambda line: None)
    known = {state.active_lease.tag: state for state in previous_states}
    latest_states = (
        state if isinstance(state, LeaseSnapshot) else known.get(active_lease.tag)
        for active_lease, state in active_lease_states(reconciler)
    )
    return [state for state in latest_states if state]


def _with_cost_at(state: "LeaseSnapshot", now: datetime) -> "LeaseSnapshot":
    """Return the state with the cost until ``now``; unchanged if the lease or its cost is unknown."""
    lease, total = state.lease, state.total_su
    if lease is None or total is None:
        return state
    share = (now - lease.start) / (lease.end - lease.start)
    return replace(state, used_su=total * min(max(share, 0.0), 1.0))


def send(notifier: Notifier, title: str, text: str) -> None:
    """Send a message; print how many addresses were not reached."""
    if problem := notifier.send(title, text):
        say(problem, stderr=True)
