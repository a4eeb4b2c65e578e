"""How anything is asked of a site or done there: patiently, known to the ledger, and never twice.

A question is asked again while a service does not answer. An act whose outcome is not known is looked for before it is
tried again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from provision.errors import SiteError, Unreachable
from provision.leasing.journal import ActiveLease, Journal, Operation

ATTEMPTS = 12
LONGEST_PAUSE_S = 30
T = TypeVar("T")
Say = Callable[[str], None]


class Clock:
    """Time as this package sees it; tests have one of their own."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def passed_s(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True)
class Reconciler:
    """What every act needs: the ledger, a clock, and somebody to tell."""

    journal: Journal
    clock: Clock
    say: Say

    def ask(self, question: Callable[[], T]) -> T:
        """The answer, asked for again while a service is Unreachable; bounded in number."""
        return self._patiently()(question)

    def perform(self, active_lease: ActiveLease, operation: Operation, do: Callable[[], T], **intent: Any) -> T:
        """Do it once, its intent and its failure in the ledger; the caller writes down what came of it."""
        self.journal.write("intent", active_lease, operation, **intent)
        try:
            return do()
        except Unreachable:
            raise
        except SiteError as problem:
            self.journal.write("failed", active_lease, operation, reason=str(problem))
            raise

    def ensure(
        self,
        active_lease: ActiveLease,
        operation: Operation,
        find: Callable[[], T | None],
        make: Callable[[], T],
        outcome: Callable[[T], dict[str, Any]],
        **intent: Any,
    ) -> T:
        """What ``find`` finds, else what ``make`` makes: exactly one, also where the answer to ``make`` was lost."""

        def once() -> T:
            there = find()
            return self.perform(active_lease, operation, make, **intent) if there is None else there

        made = self._patiently()(once)
        self.journal.write("done", active_lease, operation, **outcome(made))
        return made

    def remove(
        self, active_lease: ActiveLease, operation: Operation, find: Callable[[], list[T]], drop: Callable[[T], None]
    ) -> None:
        """Drop all that ``find`` finds."""

        def once() -> None:
            for thing in find():
                self.perform(active_lease, operation, partial(drop, thing), id=getattr(thing, "id", ""))
                self.journal.write("done", active_lease, operation, id=getattr(thing, "id", ""))

        self._patiently()(once)

    def wait(
        self, what: str, question: Callable[[], T], done: Callable[[T], bool], limit_s: float, every_s: float = 10
    ) -> T | None:
        """The first answer that is ``done``; None when there is none within limit_s. Says how long it has waited."""
        began = self.clock.passed_s()
        while not done(answer := self.ask(question)):
            passed = self.clock.passed_s() - began
            if passed > limit_s:
                return None
            self.say(f"{what}: {_status(answer)}, for {passed / 60:.0f} of up to {limit_s / 60:.0f} minutes")
            self.clock.sleep(every_s)
        return answer

    def _patiently(self) -> Retrying:
        return Retrying(
            retry=retry_if_exception_type(Unreachable),
            wait=wait_exponential(max=LONGEST_PAUSE_S),
            stop=stop_after_attempt(ATTEMPTS),
            sleep=self.clock.sleep,
            before_sleep=self._tell,
            reraise=True,
        )

    def _tell(self, state: RetryCallState) -> None:
        problem = state.outcome.exception() if state.outcome else None
        self.say(f"{problem}; attempt {state.attempt_number} of {ATTEMPTS}")


def _status(answer: object) -> str:
    """What a thing is, and what is done with it where that is told: BUILD, spawning."""
    told = getattr(answer, "status", "waiting"), getattr(answer, "task", "")
    return ", ".join(filter(None, told))
