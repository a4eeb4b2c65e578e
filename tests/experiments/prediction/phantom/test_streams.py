"""Several streams on the phantom device: pools of the allocator, and blocks that the GPU still uses when released."""

import pytest

MIB = 1024**2
ONE_BLOCK, TWO_BLOCKS = 22, 42  # MiB, with a segment of 2 MiB for small tensors

pytestmark = pytest.mark.xdist_group("tracer")


def test_a_stream_has_a_pool_of_its_own(probe_results):
    assert probe_results["pools"] == [2 * MIB, 4 * MIB, 0]


@pytest.mark.parametrize(
    ("case", "reserved_mib"),
    [
        ("own stream, GPU behind", ONE_BLOCK),
        ("idle stream, GPU behind", ONE_BLOCK),
        ("waiting stream, GPU behind", TWO_BLOCKS),
        ("own stream, GPU ahead", ONE_BLOCK),
        ("other stream, no clocks", ONE_BLOCK),
        ("other stream, GPU ahead", ONE_BLOCK),
        ("other stream, host has waited", ONE_BLOCK),
        ("other stream, GPU behind", TWO_BLOCKS),
    ],
)
def test_a_block_that_another_stream_uses_is_free_when_the_gpu_has_executed_what_came_before(
    probe_results, case, reserved_mib
):
    reserved, allocated, _, _ = probe_results["replays_with_clocks"][case]
    assert (reserved, allocated) == (reserved_mib, 20)


def test_a_card_that_would_be_full_waits_for_the_gpu_and_uses_the_block(probe_results):
    _, _, failed_event, retries = probe_results["replays_with_clocks"]["other stream, GPU behind"]
    assert (failed_event, retries) == (None, 1)


def test_autograd_uses_a_gradient_on_the_stream_of_the_forward_pass(probe_results):
    assert probe_results["gradients_used_on_another_stream"] == [False, True]


def test_a_wait_for_a_collective_operation_uses_no_tensors_and_a_wait_for_its_future_does(probe_results):
    assert probe_results["waits_for_collectives"] == [False, True]


def test_a_wait_for_an_event_and_a_query_of_it_are_recorded(probe_results):
    assert probe_results["waits_for_events"] == [[1, True], [1, True]]


def test_events_and_streams_of_torch_cuda_and_of_torch_wait_for_each_other(probe_results):
    assert len(probe_results["both_families"]) == 4
    wrong = {
        f"{families}: {name}"
        for families, found in probe_results["both_families"].items()
        for name, right in found.items()
        if not right
    }
    assert not wrong
