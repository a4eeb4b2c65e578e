"""The clock of the program."""

import time
from datetime import UTC, datetime

from provision.errors import Unreachable


class Clock:
    """The real clock. Tests replace it with a clock that advances without waiting."""

    def now(self) -> datetime:
        """Return the current time in UTC."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """Return the seconds since an arbitrary moment; only differences between two values have a meaning."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait this many seconds."""
        time.sleep(seconds)


class NoWaitClock(Clock):
    """A clock that never waits, so that a query is sent only once."""

    def sleep(self, seconds: float) -> None:
        """Raise Unreachable instead of waiting for another attempt."""
        raise Unreachable(f"no answer to the first request; not waiting {seconds:.0f} s for another attempt")
