"""Messages of commands: of each finished run, and of leases."""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from math import inf
from typing import TYPE_CHECKING

from experiments.cli.output import say
from experiments.notify.send import Notifier

if TYPE_CHECKING:
    from experiments.pipeline import FinishedRun
    from provision.leasing.release import State

SOON = timedelta(hours=1)
QUERY_EVERY_S = 300.0


def notifying(runs: "Iterable[FinishedRun]", notifier: Notifier) -> "Iterator[FinishedRun]":
    """Yield each run when it is finished, after a message about it has been sent."""
    from experiments.notify.messages import run_message
    from experiments.report.identity import find_previous_run

    for done in runs:
        if notifier.has_addresses:
            before = find_previous_run(done.folder, done.evaluation.run)
            send(notifier, *run_message(done.evaluation, before.statuses if before else None))
        yield done


def notify_of_leases(
    states: "Iterable[State]", notifier: Notifier, now: datetime, within: timedelta, above_su: float | None
) -> None:
    """Send a message for each lease that begins or ends soon, or costs more than the bound."""
    from experiments.notify.messages import lease_messages

    for message in lease_messages(states, now, within, above_su):
        send(notifier, *message)


class LeaseWatch:
    """Sends each message about the active leases once; queries their sites at most every QUERY_EVERY_S seconds.

    above_su: bound of the cost of a lease. A site that does not answer is queried again later.
    """

    def __init__(self, send_message: Callable[[str, str], None], above_su: float | None) -> None:
        self._send_message, self._above_su = send_message, above_su
        self._sent: set[str] = set()
        self._queried_s = -inf

    def __call__(self) -> None:
        """Query the sites and send new messages, unless the last query is too recent."""
        from experiments.notify.messages import lease_messages

        if time.monotonic() - self._queried_s < QUERY_EVERY_S:
            return
        self._queried_s = time.monotonic()
        for message in lease_messages(_active(), datetime.now(UTC), SOON, self._above_su):
            if message.text not in self._sent:
                self._sent.add(message.text)
                self._send_message(*message)


def _active() -> "list[State]":
    """Return the active leases as their sites report them, without those whose site does not answer."""
    from experiments.cli.lease_options import reconciler_of
    from provision.leasing.release import State, active_lease_states

    return [state for _, state in active_lease_states(reconciler_of(None)) if isinstance(state, State)]


def send(notifier: Notifier, title: str, text: str) -> None:
    """Send a message; print how many addresses were not reached."""
    if problem := notifier.send(title, text):
        say(problem, stderr=True)
