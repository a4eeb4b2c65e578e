"""A fake of the module time, whose clock advances only when a test sets it."""


class FakeTime:
    """``now`` is the value of time.monotonic; a pause takes no time."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Return at once."""
