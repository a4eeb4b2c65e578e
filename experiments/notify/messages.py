"""The texts of messages about finished runs, and about leases that begin or end soon or exceed a cost."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from experiments.results.verdicts import Evaluation, Status, Verdict
from provision.availability.times import length_in_words
from provision.leasing.release import LeaseSnapshot
from provision.leasing.request import deletion_reason
from provision.words import number_with_noun


class Message(NamedTuple):
    """A message: its subject and its text."""

    title: str
    text: str


def run_message(evaluation: Evaluation, before: Mapping[str, Status] | None) -> Message:
    """Return the message of a finished run. before: status of each statement in the previous run; None without one."""
    counts = {status: evaluation.count(status) for status in ("pass", "fail", "error", "not evaluated")}
    known = f" ({evaluation.known_failures} known)" if evaluation.known_failures else ""
    title = f"testbed: {evaluation.run.run_id} finished: {counts['pass']} pass, {counts['fail']} fail{known}"
    lines = [f"{number_with_noun(number, 'statement')}: {status}" for status, number in counts.items() if number]
    flipped = [
        f"flipped: {_statement_without_period(verdict)}: {before[verdict.id]} → {verdict.status}"
        for verdict in evaluation.verdicts
        if before and verdict.id in before and before[verdict.id] != verdict.status
    ]
    failed = [
        f"{verdict.status}: {_statement_without_period(verdict)}: {verdict.reason}"
        for verdict in evaluation.verdicts
        if verdict.status in ("fail", "error")
    ]
    title += f", {len(flipped)} flipped" if flipped else ""
    return Message(title, "\n".join([*lines, *flipped, *failed]))


def _statement_without_period(verdict: Verdict) -> str:
    """Return the sentence of the statement without its period, so that a colon can follow."""
    return verdict.says.removesuffix(".")


def lease_messages(
    states: Iterable[LeaseSnapshot], now: datetime, within: timedelta, above_su: float | None
) -> Iterator[Message]:
    """Yield a message for each lease that begins or ends soon, or that has cost too much.

    within: how long after ``now`` is still "soon". above_su: cost in service units above which there is a message;
    None: no message about the cost.

    Also yields a message for a lease that ends itself, if its site no longer lists it.
    """
    for state in states:
        lease, name = state.lease, state.active_lease.name
        if lease is None:
            if why := deletion_reason(state.active_lease):
                text = f"lease {name} {why}; `testbed release {name}` deletes what is left at {state.active_lease.site}"
                yield Message(f"testbed: lease {name} ended itself or was deleted", text)
            continue
        for verb, time in (("begins", lease.start), ("ends", lease.end)):
            if now < time <= now + within:
                text = f"{verb} {time.isoformat(timespec='minutes')}; `testbed status {name}` shows details"
                yield Message(f"testbed: lease {name} {verb} in {length_in_words(time - now)}", f"lease {name} {text}")
        if above_su is not None and state.used_su is not None and state.used_su > above_su:
            text = f"`testbed release {name}` ends the lease"
            cost = f"{state.used_su:.1f} service units, more than {above_su:g}"
            yield Message(f"testbed: lease {name} has cost {cost}", text)
