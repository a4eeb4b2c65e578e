"""Send requests to a site: retry them, record them in the journal, and carry out each operation only once.

The reconciler repeats a query while a service is unreachable. If the outcome of an operation is unknown, such as the
creation of a server, it searches for the result, such as the server, before it tries the operation again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from provision.clock import Clock
from provision.errors import SiteError, Unreachable
from provision.leasing.journal import ActiveLease, Journal, Operation

if TYPE_CHECKING:
    from tenacity import RetryCallState, Retrying

ATTEMPTS = 12
LONGEST_PAUSE_S = 30
"""The longest pause between two attempts, seconds. A service may ask for a longer pause."""
LONGEST_REQUESTED_PAUSE_S = 600
"""The longest pause that a service may ask for, seconds."""
T = TypeVar("T")
Report = Callable[[str], None]
"""Receives a line about progress."""


@dataclass(frozen=True)
class Reconciler:
    """Carries out operations at a site, repeats them after errors, and writes each into a journal."""

    journal: Journal
    clock: Clock
    report: Report

    def query(self, request: Callable[[], T]) -> T:
        """Return the response to a request. While a service is Unreachable, make up to ATTEMPTS attempts."""
        return self._retrying()(request)

    def perform(self, active_lease: ActiveLease, operation: Operation, request: Callable[[], T], **intent: Any) -> T:
        """Send the request of an operation once; record its intent and a failure. The caller records a success."""
        self.journal.write("intent", active_lease, operation, **intent)
        try:
            return request()
        except Unreachable:
            raise
        except SiteError as problem:
            self.journal.write("failed", active_lease, operation, reason=str(problem))
            raise

    def find_or_create(
        self,
        active_lease: ActiveLease,
        operation: Operation,
        find: Callable[[], T | None],
        create: Callable[[], T],
        outcome: Callable[[T], dict[str, Any]],
        **intent: Any,
    ) -> T:
        """Return the resource that ``find`` returns, else create one; never create two, even if a response was lost.

        outcome: returns the data about the resource that the journal records. intent: data of the intent.
        """

        def find_or_create_once() -> T:
            found = find()
            return self.perform(active_lease, operation, create, **intent) if found is None else found

        resource = self._retrying()(find_or_create_once)
        self.journal.write("done", active_lease, operation, **outcome(resource))
        return resource

    def delete_all(
        self,
        active_lease: ActiveLease,
        operation: Operation,
        find: Callable[[], Sequence[T]],
        delete: Callable[[T], None],
    ) -> None:
        """Delete everything that ``find`` returns; raise the first rejection after all other deletions."""

        def delete_all_once() -> None:
            rejections = []
            for resource in find():
                id = getattr(resource, "id", "")
                try:
                    self.perform(active_lease, operation, partial(delete, resource), id=id)
                    self.journal.write("done", active_lease, operation, id=id)
                except Unreachable:
                    raise
                except SiteError as problem:
                    rejections.append(problem)
            if rejections:
                raise rejections[0]

        self._retrying()(delete_all_once)

    def wait(
        self,
        label: str,
        request: Callable[[], T],
        is_done: Callable[[T], bool],
        limit_s: float,
        *,
        every_s: float = 10,
        remaining: Callable[[T], str] | None = None,
    ) -> T | None:
        """Call ``request`` every ``every_s`` s; return the first response that ``is_done`` accepts, None after limit_s.

        Reports each new status. Reports an unchanged status again after limit_s / 8, but at least a minute later.

        label: what each report begins with: the awaited resource, such as "server NAME". remaining: returns the
        expected remaining time, as text. Without ``remaining``, the report states how long the program has waited.
        """
        began = self.clock.monotonic_s()
        shown, shown_s = "", 0.0
        while not is_done(response := self.query(request)):
            passed = self.clock.monotonic_s() - began
            if passed > limit_s:
                return None
            status = _status(response)
            if status != shown or passed - shown_s >= max(limit_s / 8, 60):
                shown, shown_s = status, passed
                waited = f"for {passed / 60:.0f} of up to {limit_s / 60:.0f} minutes"
                self.report(f"{label}: {status}, {remaining(response) if remaining else waited}")
            self.clock.sleep(every_s)
        return response

    def _retrying(self) -> "Retrying":
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

        return Retrying(
            retry=retry_if_exception_type(Unreachable),
            wait=_pause_s,
            stop=stop_after_attempt(ATTEMPTS),
            sleep=self.clock.sleep,
            before_sleep=self._report_attempt,
            reraise=True,
        )

    def _report_attempt(self, state: "RetryCallState") -> None:
        problem = state.outcome.exception() if state.outcome else None
        self.report(f"{problem}; attempt {state.attempt_number} of {ATTEMPTS}")


def _pause_s(state: "RetryCallState") -> float:
    """Return the pause before the next attempt, seconds; at least as long as the service requests, up to a limit."""
    from tenacity import wait_exponential

    problem = state.outcome.exception() if state.outcome else None
    requested = min(getattr(problem, "retry_after_s", 0.0), LONGEST_REQUESTED_PAUSE_S)
    return max(wait_exponential(max=LONGEST_PAUSE_S)(state), requested)


def _status(response: object) -> str:
    """Return a resource's status, and its current task if the site reports one: 'BUILD, spawning'."""
    parts = getattr(response, "status", "waiting"), getattr(response, "task", "")
    return ", ".join(filter(None, parts))
