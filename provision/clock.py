"""The clock of the program."""

import time
from datetime import UTC, datetime

from provision.errors import Unreachable


class Clock:
    """A clock; tests replace it by one that advances without waiting."""

    def now(self) -> datetime:
        """Return the current time in UTC."""
        return datetime.now(UTC)

    def passed_s(self) -> float:
        """Return the seconds since an arbitrary moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class NoWaitClock(Clock):
    """A clock that never waits, so that a query is sent only once."""

    def sleep(self, seconds: float) -> None:
        """Raise Unreachable instead of waiting for another attempt."""
        raise Unreachable(f"no answer at once; the next attempt would be in {seconds:.0f} s")
