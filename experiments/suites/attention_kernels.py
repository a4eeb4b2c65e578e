"""The kernels that PyTorch chooses on a card, where the choice affects memory."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from itertools import groupby

from experiments.suites.cards import Card, card_named

KIB = 1024
MIB = 1024 * KIB
AMD_WITH_ATTENTION_KERNELS = ("gfx90a", "gfx942")
"""AMD architectures for which PyTorch has attention kernels (pytorch/pytorch#141958: it has none for gfx908)."""


@dataclass(frozen=True)
class KernelProperties:
    """The properties of a card that determine which kernels PyTorch uses and how much memory they need.

    flash: flash attention. memory_efficient: memory-efficient attention for all data types except bfloat16.
    memory_efficient_bfloat16: memory-efficient attention for bfloat16. cudnn_width: largest head dimension for which
    PyTorch prefers cuDNN's attention to the other kernels; 0: it never does. workspace_bytes: memory that a cuBLAS
    handle allocates at its first matrix product and keeps. multiprocessors: the card's number of multiprocessors, which
    determines the scratch memory of large reductions. attention_generation: identifies PyTorch's own attention kernels,
    which determine the scratch memory of attention: 10 times the lowest compute capability of the cards that have the
    same kernels; 0: AMD's kernels.
    """

    flash: bool
    memory_efficient: bool
    memory_efficient_bfloat16: bool
    cudnn_width: int
    workspace_bytes: int
    multiprocessors: int
    attention_generation: int


def kernel_properties(card: Card) -> KernelProperties:
    """Return the properties of a card that follow from its compute capability.

    The rules are from the source code of PyTorch 2.12 and 2.13:

    - aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: flash attention from 8.0. Memory-efficient attention from
      5.0, in bfloat16 from 8.0. cuDNN's attention is preferred on 9.x, for heads of up to 256 values (with cuDNN from
      9.10), and on 10.x, up to 128. On AMD's gfx90a and gfx942, all except cuDNN's.
    - aten/src/ATen/cuda/CublasHandlePool.cpp: workspaces of 32 MiB on 9.x, 10.x and 12.x (pytorch/pytorch#175344),
      else 8 MiB + 128 KiB. On AMD, 128 MiB on gfx94x, else 32 MiB.
    - aten/src/ATen/native/transformers/cuda/mem_eff_attention/kernels/generate_kernels.py: kernels for 5.0, 7.0, 7.5
      and 8.0. Cards with less shared memory (8.6, 8.9 and 12.x) use kernels with smaller blocks. One of these kernels
      exists only for 8.6 and 8.9.
    """
    if card.compute_capability.startswith("gfx"):
        fused = card.compute_capability in AMD_WITH_ATTENTION_KERNELS
        workspace = 128 * MIB if card.compute_capability.startswith("gfx94") else 32 * MIB
        return KernelProperties(fused, fused, fused, 0, workspace, card.multiprocessors, 0)
    major = int(card.compute_capability.split(".")[0])
    capability = round(10 * float(card.compute_capability))
    return KernelProperties(
        flash=major >= 8,
        memory_efficient=major >= 5,
        memory_efficient_bfloat16=major >= 8,
        cudnn_width={9: 256, 10: 128}.get(major, 0),
        workspace_bytes=32 * MIB if major in (9, 10, 12) else 8 * MIB + 128 * KIB,
        multiprocessors=card.multiprocessors,
        attention_generation=_attention_generation(capability),
    )


def _attention_generation(capability: int) -> int:
    """Return the lowest compute capability with the same attention kernels as ``capability``; both times 10."""
    if capability in (86, 89):
        return 86
    if capability >= 120:
        return 120
    return next((first for first in (80, 75, 70) if capability >= first), 50)


def group_by_kernels(card_names: Sequence[str]) -> list[list[str]]:
    """Return the cards in groups with the same kernels. Each group begins with the card with the most multiprocessors.

    A trace for that first card is valid for its whole group. The other cards need no more scratch memory for
    reductions. They need up to about 60 MiB more for a small flash attention, because the number of its parts depends
    on the number of multiprocessors.
    """

    def kernels_key(name: str) -> tuple[int, ...]:
        return astuple(replace(kernel_properties(card_named(name)), multiprocessors=0))

    ordered = sorted(card_names, key=lambda name: (kernels_key(name), -card_named(name).multiprocessors))
    return [list(group) for _, group in groupby(ordered, key=kernels_key)]
