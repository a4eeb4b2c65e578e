"""Check that a row has freed the memory of its GPUs."""

import time

from provision.hardware import gpus

TOLERANCE_GIB = 0.25


def gpus_still_in_use(before: dict[int, float], within_s: float = 30.0) -> dict[int, float]:
    """Return the GPUs that still use more memory than in ``before`` after ``within_s``, and how much (GiB)."""
    deadline = time.monotonic() + within_s
    while True:
        now = gpus.used_gib(list(before))
        in_use = {index: now[index] for index in before if now[index] > before[index] + TOLERANCE_GIB}
        if not in_use or time.monotonic() > deadline:
            return in_use
        time.sleep(0.2)
