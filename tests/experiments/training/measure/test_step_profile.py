"""Shares of a step from the times of its kernels."""

import pytest

from experiments.training.measure.step_profile import merge_intervals, time_shares, total_length_s

NCCL = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


def test_overlapping_intervals_of_kernels_count_once():
    assert merge_intervals([(3.0, 4.0), (0.0, 2.0), (1.0, 1.5), (2.0, 2.5)]) == [(0.0, 2.5), (3.0, 4.0)]
    assert total_length_s(merge_intervals([(0.0, 2.0), (1.0, 3.0)])) == 3.0
    assert merge_intervals([]) == []


def test_communication_counts_as_exposed_if_no_other_kernel_runs():
    kernels = [("gemm", 0.0, 4.0), (NCCL, 3.0, 6.0), ("gemm", 5.0, 5.5), ("gemm", 8.0, 9.0)]
    result = time_shares(kernels, duration_s=10.0)
    assert result["communication_share"] == pytest.approx(0.3)
    assert result["exposed_communication_share"] == pytest.approx(0.15)
    assert result["gpu_idle_share"] == pytest.approx(0.3)


def test_a_gpu_without_kernels_is_idle_all_the_time():
    nothing = {"communication_share": 0.0, "exposed_communication_share": 0.0, "gpu_idle_share": 1.0}
    assert time_shares([], duration_s=2.0) == nothing
