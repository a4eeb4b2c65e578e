"""The time that the host needs to allocate GPU memory, which the measured program does in each forward pass.

The program frees all cached memory before each iteration. The driver clears freed memory in the background before it
allocates it again, and an allocation waits if the rest of the memory does not suffice (NVIDIA, open-gpu-kernel-modules
550.40.07: mem_scrub.c, and pmaAllocatePages in phys_mem_allocator.c). Only Hopper has a fast scrubber for this there.
"""

import itertools
from typing import NamedTuple


class AllocationCost(NamedTuple):
    """Seconds of the host per GiB: to allocate it, and to wait until it is cleared if it has just been freed."""

    allocate_s: float = 0.0
    clear_s: float = 0.0


STEPS_S = tuple(step / 1000 for step in range(50))
ONE_CONSTANT = tuple(AllocationCost(allocate_s) for allocate_s in STEPS_S)
TWO_CONSTANTS = tuple(itertools.starmap(AllocationCost, itertools.product(STEPS_S, repeat=2)))
"""Costs among which a fit chooses."""
