"""Kernels of torchvision on the phantom device, even if torchvision's compiled library does not load."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from experiments.prediction.phantom.library import Phantom

# Arguments that several schemas share.
SHAPE = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
POOLED = "float spatial_scale, SymInt pooled_height, SymInt pooled_width"
ALIGNED = "int sampling_ratio, bool aligned"
STRIDES = (
    "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, "
    "SymInt groups, SymInt offset_groups, bool use_mask"
)
WEIGHTS = "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias"
SCHEMAS = (
    "_cuda_version() -> int",
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align(Tensor input, Tensor rois, {POOLED}, {ALIGNED}) -> Tensor",
    f"_roi_align_backward(Tensor grad, Tensor rois, {POOLED}, {SHAPE}, {ALIGNED}) -> Tensor",
    "qroi_align(Tensor input, Tensor rois, float input_scale, int input_zero_point, float rois_scale, "
    f"int rois_zero_point, {POOLED}, {ALIGNED}) -> Tensor",
    f"roi_pool(Tensor input, Tensor rois, {POOLED}) -> (Tensor, Tensor)",
    f"_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, {POOLED}, {SHAPE}) -> Tensor",
    f"ps_roi_align(Tensor input, Tensor rois, {POOLED}, int sampling_ratio) -> (Tensor, Tensor)",
    "_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor channel_mapping, "
    f"{POOLED}, int sampling_ratio, {SHAPE}) -> Tensor",
    f"ps_roi_pool(Tensor input, Tensor rois, {POOLED}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, {POOLED}, {SHAPE}) -> Tensor",
    f"deform_conv2d({WEIGHTS}, {STRIDES}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {WEIGHTS}, {STRIDES}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
"""The operations of torchvision 0.28 with those arguments that its Python code passes (torchvision/csrc/ops)."""
BOXES_PER_WORD = 64
"""The kernel of nms stores the overlaps of a box as a bit mask, in words of 64 bits."""
_libraries: list[torch.library.Library] = []


def prepare_torchvision(phantom: Phantom) -> None:
    """Import torchvision, with kernels for the phantom device.

    The compiled library in torchvision's published packages needs PyTorch's CUDA build. With another build, this
    function defines the operations of SCHEMAS in place of the library.
    """
    with patch.object(torch.ops, "load_library", functools.partial(_load_or_define, torch.ops.load_library)):
        import torchvision  # noqa: F401
    phantom.replace_kernels("torchvision")
    kernels = torch.library.Library("torchvision", "IMPL", "CUDA")
    kernels.impl("nms", _keep_all_boxes)
    _libraries.append(kernels)
    _pool_from_largest_features()
    _sample_boxes()


def _load_or_define(load_library: Callable[[str], None], path: str) -> None:
    """Load torchvision's compiled library ``path``; if it does not load, define its operations."""
    try:
        load_library(path)
    except OSError:
        if not Path(path).name.startswith("_C."):
            raise
        _define_operations()


def _define_operations() -> None:
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    library.impl("_cuda_version", lambda: -1, "CompositeExplicitAutograd")
    _libraries.append(library)


def _keep_all_boxes(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Return the positions of all boxes, because it is unknown which ones overlap.

    This function takes as much memory as torchvision/csrc/ops/cuda/nms_kernel.cu.
    """
    order = scores.sort(stable=True, dim=0, descending=True)[1]
    ordered = boxes.index_select(0, order).contiguous()
    words = -(-len(boxes) // BOXES_PER_WORD)
    overlaps = boxes.new_empty(len(boxes) * words, dtype=torch.int64)
    is_kept = boxes.new_ones(len(boxes), dtype=torch.bool)
    del ordered, overlaps
    return order.masked_select(is_kept)


def _pool_from_largest_features() -> None:
    """Pool every box from the largest features (those for small boxes), because the sizes of the boxes are unknown.

    In the first steps of Faster R-CNN on an H200, 91 % of the boxes were pooled from the largest features.
    """
    from torchvision.ops.poolers import LevelMapper

    def assign_first_level(mapper: Any, boxes: list[torch.Tensor]) -> torch.Tensor:
        return torch.zeros(sum(len(one) for one in boxes), dtype=torch.int64, device=boxes[0].device)

    LevelMapper.__call__ = assign_first_level


def _sample_boxes() -> None:
    """Sample the maximum number of boxes of each image for the loss; it is unknown which boxes match an object."""
    from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

    def sample_as_many_as_allowed(
        sampler: Any, matched: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        positions = [torch.arange(len(matches), device=matches.device) for matches in matched]
        max_with_object = int(sampler.batch_size_per_image * sampler.positive_fraction)
        with_object = [image_positions < max_with_object for image_positions in positions]
        without_object = [
            (image_positions >= max_with_object) & (image_positions < sampler.batch_size_per_image)
            for image_positions in positions
        ]
        return with_object, without_object

    BalancedPositiveNegativeSampler.__call__ = sample_as_many_as_allowed
