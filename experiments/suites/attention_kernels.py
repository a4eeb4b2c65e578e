"""The kernels that PyTorch chooses on a card, where the choice affects memory."""

from dataclasses import dataclass

from experiments.suites.cards import Card

KIB = 1024
MIB = 1024 * KIB
MULTIPROCESSORS = {"6.0": 56, "7.0": 80, "8.0": 108, "9.0": 132}
"""Of the data-center GPUs of a compute capability, as NVIDIA's architecture papers state them."""


@dataclass(frozen=True)
class Kernels:
    """Which attention kernels PyTorch can use on a card, and the size of the cuBLAS workspace.

    flash: flash attention. bfloat_efficient: memory-efficient attention for bfloat16; for other data types it is always
    available. cudnn: attention of cuDNN, which PyTorch prefers to the other two. workspace_bytes: memory that a cuBLAS
    handle allocates at its first matrix product and keeps. multiprocessors: they share large reductions.
    """

    flash: bool
    bfloat_efficient: bool
    cudnn: bool
    workspace_bytes: int
    multiprocessors: int


def kernels_of(card: Card) -> Kernels:
    """Return the kernels that PyTorch chooses for the card's compute capability.

    The rules are from PyTorch's sources:
    aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (flash attention from 8.0, memory-efficient attention from 5.0,
    in bfloat16 from 8.0, cuDNN's preferred from 9.0; on AMD's gfx90a all but cuDNN's through AOTriton) and
    aten/src/ATen/cuda/CublasHandlePool.cpp (workspaces of 32 MiB on 9.x, else 8 MiB and 128 KiB; hipBLASLt: 32 MiB).
    """
    if card.compute_capability.startswith("gfx"):
        return Kernels(flash=True, bfloat_efficient=True, cudnn=False, workspace_bytes=32 * MIB, multiprocessors=104)
    major = int(card.compute_capability.split(".")[0])
    workspace = 32 * MIB if major == 9 else 8 * MIB + 128 * KIB
    return Kernels(
        flash=major >= 8,
        bfloat_efficient=major >= 8,
        cudnn=major >= 9,
        workspace_bytes=workspace,
        multiprocessors=MULTIPROCESSORS.get(card.compute_capability, 84),
    )
