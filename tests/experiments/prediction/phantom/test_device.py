"""The phantom device: its allocator, the values of tensors, and the shapes and kernels of operations."""

import pytest

MIB = 1024**2
FLASH, EFFICIENT = "ScaledDotProductFlashAttentionBackward0", "ScaledDotProductEfficientAttentionBackward0"
CUDNN = "ScaledDotProductCudnnAttentionBackward0"

pytestmark = pytest.mark.xdist_group("tracer")


@pytest.mark.parametrize(
    ("asked", "allocated", "segment"),
    [
        (0, 0, 0),
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
    ],
)
def test_sizes_of_blocks_are_multiples_of_512_bytes_and_determine_the_size_of_their_segment(
    probe_results, asked, allocated, segment
):
    assert probe_results["sizes"][str(asked)] == [allocated, segment]


def test_the_rest_of_a_large_block_is_split_off_only_above_1_mib(probe_results):
    assert probe_results["sizes"][str(11 * MIB)] == [12 * MIB, 12 * MIB]
    assert probe_results["sizes"][str(13 * MIB - 512)] == [13 * MIB - 512, 14 * MIB]


@pytest.mark.parametrize(
    ("held", "reserved"),
    [
        ("4096 of 512 bytes", 2),
        ("4097 of 512 bytes", 4),
        ("4 of 5 MiB", 20),
        ("5 of 5 MiB", 40),
        ("2 of 1 MiB and 2 of 2 MiB", 22),
        ("9 and 9 MiB of merged neighbors", 20),
        ("12 and 30 MiB after 30 and 12", 42),
    ],
)
def test_blocks_share_segments_and_freed_segments_are_used_again(probe_results, held, reserved):
    assert probe_results["split_and_merged"][held] == reserved * MIB


def test_addresses_of_segments_increase_up_to_340_mib_and_then_decrease(probe_results):
    assert probe_results["segments_of_equal_blocks"] == [False, True]


@pytest.mark.parametrize("history", ["history_with_equal_blocks", "history_with_large_first_segments"])
def test_a_replay_of_measured_allocations_reserves_the_measured_memory(probe_results, history):
    assert probe_results[history] == pytest.approx(0, abs=1e-6)


def test_copies_and_concatenations_of_a_mask_of_ones_are_known_to_be_ones(probe_results):
    assert probe_results["masks_of_ones"] == [True, False, False]


# The log: allocate 4 MiB, allocate and free 20 MiB, allocate 24 MiB. Segments: 20, 20 and 24 MiB.
@pytest.mark.parametrize("capacity", [1000, 64])
def test_freed_memory_stays_cached_while_the_card_has_space(probe_results, capacity):
    assert probe_results["replayed"][str(capacity)] == {
        "peak_allocated": 28 * MIB,
        "peak_reserved": 64 * MIB,
        "retries": 0,
        "peak_event": 3,
        "failed_event": None,
        "requested": 0,
    }


@pytest.mark.parametrize("capacity", [63, 44])
def test_on_a_full_card_free_segments_are_released_and_the_allocation_is_repeated(probe_results, capacity):
    replay = probe_results["replayed"][str(capacity)]
    assert (replay["retries"], replay["peak_reserved"]) == (1, 44 * MIB)
    assert (replay["failed_event"], replay["peak_allocated"]) == (None, 28 * MIB)


@pytest.mark.parametrize(("capacity", "event", "requested"), [(43, 3, 24), (39, 1, 20), (19, 0, 4)])
def test_an_allocation_that_fails_twice_is_out_of_memory(probe_results, capacity, event, requested):
    replay = probe_results["replayed"][str(capacity)]
    assert (replay["failed_event"], replay["requested"]) == (event, requested * MIB)
    assert (replay["retries"], replay["peak_reserved"] <= capacity * MIB) == (1, True)


def test_resizing_a_storage_frees_and_allocates_memory(probe_results):
    allocated, sizes, events = zip(*probe_results["resized"], strict=True)
    assert allocated == sizes == (0, 4 * MIB, 4 * MIB, 8 * MIB)
    assert events[1] == events[2]


def test_a_cublas_workspace_is_allocated_once_per_thread_and_stream(probe_results):
    _, *forwards, backward, again, on_a_stream = probe_results["workspaces"]
    assert forwards == [32, 32]
    assert (backward, again) == (64, 64)
    assert on_a_stream == 96


def test_the_host_waits_for_blocking_copies_for_values_that_it_reads_and_for_synchronization(probe_results):
    copies = [["aten::copy_", waits] for waits in (True, False, True)]  # the second one is asynchronous
    assert probe_results["waits"] == [
        *copies,
        ["aten::sum", False],
        ["aten::_local_scalar_dense", True],
        ["host::wait", True],
    ]


def test_recomputed_operations_are_counted_separately(probe_results):
    assert probe_results["recomputed"] == {"no checkpointing": [6, 0], "reentrant": [8, 2], "not reentrant": [7, 1]}


def test_large_host_tensors_are_counted_but_not_allocated(probe_results):
    host = probe_results["host"]
    assert host["peak"] == 9 * 1024 * MIB
    assert host["taken"] < 64 * MIB
    assert host["small"] == 7000


def test_pinned_float_tensors_are_not_allocated_and_pinned_integers_have_values(probe_results):
    host = probe_results["host"]
    assert host["offloaded"] == 512 * MIB
    assert host["taken by offloaded"] < 64 * MIB
    count = MIB // 4
    assert host["sum of pinned integers"] == count * (count - 1) // 2


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("sum", 10),
        ("largest", 5),
        ("equal", True),
        ("unequal", False),
        ("mask", [[True, False, True], [False, True, False]]),
        ("indexed", [3, 5, 2]),
        ("selected", [3, 5, 2]),
        ("nonzero", [[0, 0], [0, 2], [1, 1]]),
        ("written", [[9, 0, 9], [0, 9, 0]]),
        ("filled", [[3, -1, 5], [-1, 2, -1]]),
        ("arange", [2, 5, 8]),
        ("cumulated", [[1, 1, 2], [0, 1, 1]]),
        ("column", [0, 2]),
        ("turned", [[3, 0], [0, 2], [5, 0]]),
        ("from host and back", [1, 2]),
    ],
)
def test_integer_tensors_have_values(probe_results, what, value):
    assert probe_results["values"][what] == value


def test_values_of_floating_point_tensors_are_read_as_zero(probe_results):
    assert probe_results["values"]["floats"] == [[0, 0, 0], [0, 0, 0]]
    assert probe_results["values"]["float item"] == 0


def test_a_mask_selects_as_many_elements_of_a_float_tensor_as_it_has_true_values(probe_results):
    assert probe_results["values"]["floats indexed"] == probe_results["values"]["floats selected"] == [3]


def test_outputs_and_gradients_have_the_shapes_strides_and_types_that_they_have_on_a_cpu(probe_results):
    phantom, processor = probe_results["shapes"]["phantom"], probe_results["shapes"]["processor"]
    assert len(phantom) == 20
    assert phantom == processor


@pytest.mark.parametrize(
    ("operation", "kept"),
    [
        ("dropout", (2 + 1) * MIB),  # the output in 16 bit and a mask of bytes
        ("layer norm", 2 * MIB + 2 * 1024 * 4),  # the output, mean and deviation of each row in 32 bit
        ("relu", 2 * MIB),
    ],
)
def test_an_operation_saves_the_same_memory_for_backward_as_its_cuda_kernel(probe_results, operation, kept):
    assert probe_results["kept_for_backward"][operation] == kept


@pytest.mark.parametrize(
    ("call", "kernel"),
    [
        ("bfloat", FLASH),
        ("bfloat on AMD", FLASH),
        ("causal", FLASH),
        ("not square", FLASH),
        ("grouped heads", FLASH),
        ("mask", EFFICIENT),
        ("mask on a Hopper card", CUDNN),
        ("learned mask on a Hopper card", EFFICIENT),
        ("mask in 32 bit on a Hopper card", EFFICIENT),
        ("32 bit", EFFICIENT),
        ("wide heads", EFFICIENT),
        ("causal, not square", EFFICIENT),
        ("half without flash", EFFICIENT),
        ("32 bit without flash", EFFICIENT),
        ("64 bit", None),
        ("turned mask", None),
        ("turned mask on a Hopper card", None),
        ("grouped heads, mask", None),
        ("unaligned heads", None),
        ("bfloat without its kernels", None),
        ("half on AMD without kernels", None),
        ("32 bit on AMD without kernels", None),
    ],
)
def test_attention_uses_a_kernel_that_the_card_supports(probe_results, call, kernel):
    name = probe_results["attention"][call]
    assert name == kernel if kernel else not name.startswith("ScaledDotProduct")
