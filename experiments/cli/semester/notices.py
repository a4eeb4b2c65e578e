"""Messages of commands: of each finished run, and of leases."""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from experiments.cli.output import say
from experiments.notify.send import Notifier

if TYPE_CHECKING:
    from experiments.pipeline import FinishedRun
    from provision.leasing.release import State


def notifying(runs: "Iterable[FinishedRun]", notifier: Notifier) -> "Iterator[FinishedRun]":
    """Yield each run when it is finished, after a message about it has been sent."""
    from experiments.notify.messages import run_message
    from experiments.report.identity import find_previous_run

    for done in runs:
        if notifier.has_addresses:
            before = find_previous_run(done.folder, done.evaluation.run)
            _send(notifier, *run_message(done.evaluation, before.statuses if before else None))
        yield done


def notify_of_leases(
    states: "Iterable[State]", notifier: Notifier, now: datetime, within: timedelta, above_su: float | None
) -> None:
    """Send a message for each lease that begins or ends soon, or costs more than the bound."""
    from experiments.notify.messages import lease_messages

    for message in lease_messages(states, now, within, above_su):
        _send(notifier, *message)


def _send(notifier: Notifier, title: str, text: str) -> None:
    if problem := notifier.send(title, text):
        say(problem, stderr=True)
