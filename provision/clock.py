"""The time."""

import time
from datetime import UTC, datetime

from provision.errors import Unreachable


class Clock:
    """The time; tests replace it by one that moves without waiting."""

    def now(self) -> datetime:
        """Return the current time in UTC."""
        return datetime.now(UTC)

    def passed_s(self) -> float:
        """Return the seconds since an arbitrary moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class ImpatientClock(Clock):
    """A clock for questions that must not wait: the first attempt decides."""

    def sleep(self, seconds: float) -> None:
        """Raise Unreachable, because the answer did not come at once."""
        raise Unreachable(f"no answer at once; the next attempt would be in {seconds:.0f} s")
