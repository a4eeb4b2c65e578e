"""The memory that kernels allocate, compared with measurements on an H200 with PyTorch 2.11 and cuDNN 9.19."""

import pytest

MIB = 1024**2
"""A block of the allocator can be up to 1 MiB larger than requested."""

pytestmark = pytest.mark.xdist_group("tracer")


@pytest.mark.parametrize(
    ("layer", "kept", "workspace"),
    [
        ("LSTM", 111_149_568, 154_927_872),
        ("LSTM of 3 layers with dropout", 334_594_560, 262_144_768),
        ("LSTM of one step", 2_622_464, 46_400_256),
        ("LSTM in bfloat16", 55_575_040 + 16_793_600, 81_658_624),
        ("GRU", 128_976_384, 144_966_400),
        ("GRU of 2 layers with dropout", 11_882_528, None),
        ("RNN of 2 layers", 74_449_408, 132_121_344),
    ],
)
def test_a_recurrent_layer_keeps_memory_for_the_backward_pass_and_needs_a_workspace_as_in_cudnn(
    probe_results, layer, kept, workspace
):
    found_kept, found_workspace = probe_results["recurrent"][layer]
    assert found_kept == pytest.approx(kept, abs=2 * MIB)
    if workspace:
        assert found_workspace == pytest.approx(workspace, rel=0.02)


@pytest.mark.parametrize(
    ("shape", "forward", "to_input", "to_weights"),
    [
        ("3 x 3", 61_341_843, 61_341_712, 68_420_191),
        ("3 x 3, many channels", 127_402_131, 127_402_131, 127_402_704),
        ("3 x 3, stride 2", 74_317_840, 74_317_971, 82_576_039),
        ("3 x 3, wide", 254_803_984, 284_295_184, 359_792_784),
        ("3 x 3, more blocks than multiprocessors", 156_893_331, 156_893_331, 165_544_687),
        ("3 x 3 in 16 bit", 17_956_880, 17_956_880, 25_035_359),
        ("7 x 7, 3 channels", 140_120_848, None, 150_215_824),
        ("1 x 1", 0, 0, 8_389_008),
        ("1 x 1, stride 2", 83_558_547, 83_558_547, 83_558_416),
        ("1 x 1, batch of 4", 0, 34_816_147, 16_777_216),
        ("1 x 1, few channels", 0, 0, 233_930_896),
        ("1 x 1, many channels", 0, 294_912_147, 33_554_832),
        ("4 x 4, stride 2", 52_428_947, 52_428_947, 60_817_967),
        ("3 channels", 0, 0, 0),
        ("transposed", 52_428_947, 52_428_947, 60_817_967),
        ("1 x 1 in 16 bit", 38_535_315, None, None),
        ("depthwise", 0, 0, 0),
        ("depthwise, channels last", 0, 0, 12_845_056),
        ("depthwise, 40 channels", 0, 0, 294_912),
        ("depthwise, one sample", 0, 0, 0),
    ],
)
def test_a_convolution_needs_temporary_memory(probe_results, shape, forward, to_input, to_weights):
    found = probe_results["convolutions"][shape]
    for bytes_found, measured in zip(found, (forward, to_input, to_weights), strict=True):
        assert measured is None or bytes_found == pytest.approx(measured, abs=MIB if measured > MIB else 0)


def test_sums_per_channel_need_temporary_memory_only_if_the_channels_are_last_in_memory(probe_results):
    assert probe_results["other_scratch"]["sums of channels that are last"] == [12_845_056, 12_845_056]
    assert probe_results["other_scratch"]["sums of channels"] == [0, 0]


def test_the_backward_pass_of_cudnns_attention_needs_temporary_memory(probe_results):
    assert probe_results["other_scratch"]["attention with a mask"] == pytest.approx(20_500_736, abs=3 * MIB)


@pytest.mark.parametrize(
    ("embedding", "temporary"),
    [("embedding of few tokens", 0), ("embedding", 16_145_920), ("embedding of many tokens", 93_945_856)],
)
def test_the_gradients_of_more_than_3072_tokens_are_summed_in_parts(probe_results, embedding, temporary):
    assert probe_results["other_scratch"][embedding] == pytest.approx(temporary, rel=0.001)


def test_dropout_allocates_its_mask_before_its_result(probe_results):
    assert probe_results["dropout_order"] == 16 * MIB


def test_a_normalization_needs_almost_no_temporary_memory(probe_results):
    assert all(temporary < MIB for temporary in probe_results["normalizations"])


def test_the_first_product_with_a_bias_allocates_a_workspace_of_1_mib(probe_results):
    assert probe_results["bias_workspace"] == [0, 0, MIB, MIB, MIB, MIB]


@pytest.mark.parametrize(
    "operation",
    [
        "layer norm",
        "backward pass of layer norm",
        "softmax",
        "backward pass of softmax",
        "backward pass of an embedding",
        "backward pass of a convolution",
    ],
)
def test_a_kernel_copies_an_input_that_is_not_contiguous(probe_results, operation):
    in_order, turned = probe_results["copied_inputs"][operation]
    assert turned - in_order == MIB


def test_the_search_for_the_fastest_convolution_frees_cached_memory_once_for_each_shape(probe_results):
    assert probe_results["searched_convolution"] == [True, True, False, True]


def test_the_search_for_the_fastest_convolution_also_tries_the_one_that_needs_the_most_memory(probe_results):
    assert probe_results["memory_of_the_search"] == pytest.approx([94_372_607, 33_554_704], abs=MIB)


def test_a_convolution_does_without_temporary_memory_that_does_not_fit_and_a_sum_does_not(probe_results):
    assert probe_results["convolution_without_memory"] == [False, True]


def test_a_convolution_returns_the_order_channels_last_if_an_operand_has_this_order(probe_results):
    assert probe_results["convolution_order"] == [False, True, True]


def test_cross_entropy_of_a_large_vocabulary_needs_no_scratch_memory_beside_its_log_probabilities_and_gradients(
    probe_results,
):
    """The peaks of models with 151,936 tokens, measured on an H200, have errors of 0.00 % (`scripts.md`)."""
    probabilities = 512 * 151_936 * 4
    found = probe_results["cross_entropy"]
    assert found["scratch"] < MIB
    assert found["kept"] == pytest.approx(probabilities, abs=MIB)
    assert found["backward"] == pytest.approx(2 * probabilities, abs=MIB)


def test_a_step_of_adam_in_8_bits_allocates_its_state_once_and_no_scratch_memory(probe_results):
    """The kernel of bitsandbytes works in place: two bytes for each weight, two 32-bit scales for each 256 weights."""
    weights, tables = 4096**2, 2 * 256 * 4
    first, second = probe_results["adam_in_8_bits"]
    assert first[0] == 2 * weights + 2 * 4 * weights // 256 + tables
    assert second[0] == first[0]
    assert first[1] == second[1] == 0
