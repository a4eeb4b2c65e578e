"""The temporary memory of PyTorch's own attention kernels: the sizes that a pass allocates and frees, in bytes.

The sizes on an H200 were measured with PyTorch 2.11 (the allocator's history). The sizes on other cards follow from the
sources that attention.h names.
"""

import pytest

from tests.experiments.prediction.phantom.attention_probes import EFFICIENT, FLASH

FLASH_SIZES = {
    "short": ([196_608, 12_582_912], [49_152, 3_145_728]),
    "heads before lengths": ([196_608, 12_582_912], [1_572_864, 1_572_864, 49_152, 3_145_728]),
    "gradient in another order": ([196_608, 12_582_912], [1_572_864, 49_152, 3_145_728]),
    "dropout": ([16], [49_152, 3_145_728]),
    "long": ([], [1_671_168, 213_909_504]),
    "grouped": ([], [1_048_576, 134_217_728, 67_108_864, 67_108_864]),
    "grouped, short": ([115_200, 14_745_600], [49_152, 6_291_456, 2_457_600, 2_457_600]),
    "grouped, heads before lengths": (
        [115_200, 14_745_600],
        [2_457_600, 2_457_600, 49_152, 6_291_456, 2_457_600, 2_457_600],
    ),
    "80 values": ([], [65_536, 6_291_456]),
    "96 values": ([], [65_536, 6_291_456]),
    "160 values": ([], [65_536, 12_582_912]),
    "192 values": ([], [65_536, 12_582_912]),
    "256 values": ([], [65_536, 16_777_216]),
    "17 tokens": ([], [2_048, 131_072]),
    "more keys than queries": ([147_456, 9_437_184], [98_304, 6_291_456]),
    "one query": ([1_024, 131_072], [4_096, 524_288]),
    "one query, grouped": ([4_096, 524_288], [16_384, 2_097_152, 33_554_432, 33_554_432]),
    "one head": ([65_536, 2_097_152], [16_384, 524_288]),
    "deterministic": ([65_536, 8_388_608], [8_192, 69_206_016]),
    "short on an A100": ([], [49_152, 3_145_728]),
    "eight heads on an A100": ([131_072, 8_388_608], [32_768, 2_097_152]),
    "many keys on an A100": ([98_304, 6_291_456], [32_768, 2_097_152]),
    "eight heads on an A30": ([], [32_768, 2_097_152]),
    "eight heads on an RTX 4090": ([65_536, 4_194_304], [32_768, 2_097_152]),
    "eight heads on an H100 slice": ([], [32_768, 2_097_152]),
    "deterministic on an A100": ([131_072, 8_388_608], [32_768, 14 * 2_097_152]),
    "MI210": ([], [32_768, 32_768]),
    "MI210, 256 tokens": ([], [8_192]),
}
"""Forward pass: the sums and outputs of each part of the keys. Backward pass: copies of the gradient and the output,
sums of rows, the gradient of the queries, the gradients of keys and values for each head."""
EFFICIENT_SIZES = {
    "16 bit": ([], [49_152, 3_148_800]),
    "32 bit": ([], [3_145_728, 49_152, 49_152, 3_148_800]),
    "gradient in another order": ([], [1_572_864, 49_152, 3_148_800]),
    "128 values": ([], [1_048_576, 134_250_496]),
    "128 values in 32 bit": ([], [67_108_864, 524_288, 524_288, 67_141_632]),
    "80 values": ([], [65_536, 8_390_656]),
    "192 values": ([12_582_912], [65_536, 37_754_880]),
    "192 values in 32 bit": ([], [12_582_912, 65_536, 65_536, 12_589_056]),
    "256 values": ([16_777_216], [65_536, 41_951_232]),
    "17 tokens": ([], [272, 65_600]),
    "more queries than keys": ([], [1_152_000, 75_571_200]),
    "wider values": ([], [6_291_456, 49_152, 49_152, 3_147_264]),
    "narrower values": ([], [49_152, 3_148_800]),
    "300 tokens on an A100": ([], [9_600, 8 * 3 * (4 * 128 * 128 + 16)]),
    "300 tokens on an RTX 3090": ([], [9_600, 8 * 5 * (2 * (4 * 64 * 64 + 16) + 2 * 4 * 64 * 128)]),
    "80 values on an RTX 3090": ([], [65_536, 32 * 4 * 2 * (4 * 128 * 64 + 16)]),
    "80 values and dropout on an RTX 3090": ([], [65_536, 32 * (8 * 2 * (4 * 64 * 64 + 16) + 6 * 2 * 4 * 64 * 128)]),
    "80 values on an RTX 5090": ([], [65_536, 32 * (8 * 2 * (4 * 64 * 64 + 16) + 6 * 2 * 4 * 64 * 128)]),
    "128 values in 32 bit on an RTX 3090": ([], [1_228_800, 9_600, 9_600, 8 * 5 * 2 * (4 * 64 * 64 + 16)]),
    "many heads on an RTX 3090": ([], [131_072, 256 * (2 * 2 * (4 * 64 * 64 + 16) + 2 * 4 * 64 * 128)]),
    "deterministic on an RTX 3090": ([], [9_600, 8 * (5 * 2 * (4 * 64 * 64 + 16) + 2 * 4 * 64 * 128)]),
    "128 values on a V100": ([], [9_600, 8 * 3 * 2 * (4 * 128 * 64 + 16)]),
    "192 values on a V100": (
        [1_843_200],
        [*[1_843_200] * 3, 9_600, 9_600, 8 * (3 * 3 * (4 * 128 * 64 + 16) + 5 * 2 * 4 * 64 * 256)],
    ),
    "192 values on a T4": ([1_843_200], [9_600, 8 * (3 * 3 * (4 * 128 * 64 + 16) + 5 * 2 * 4 * 64 * 256)]),
    "128 values in 32 bit on a V100": ([], [1_228_800, 9_600, 9_600, 8 * 5 * 2 * (4 * 64 * 64 + 16)]),
    "128 values on a P100": ([], [9_600, 8 * (5 * 2 * (4 * 64 * 64 + 16) + 2 * 4 * 64 * 128)]),
    "32 bit on a P100": ([], [3_145_728, 49_152, 49_152]),
    "one head on a P100": ([], [76_800, 1_200]),
    "MI210": ([], [49_152]),
    "MI210, 256 tokens": ([], []),
}
"""Forward pass: the output in 32 bit. Backward pass: a copy of the gradient; the gradient times the output (with 16-bit
tensors in 32 bit) and its sums, if the kernel does not compute them; the sums; the workspace. The workspace has tiles
of the gradient of the queries with their locks, and the gradients of keys and values for each part of the keys."""
BACKWARD_OF_MORE_THAN_192_VALUES = [9_600, 8 * (3 * 4 * (4 * 128 * 64 + 16) + 5 * 2 * 4 * 64 * 256)]
"""Of memory-efficient attention of 8 heads and 300 tokens."""

pytestmark = pytest.mark.xdist_group("tracer")


def test_every_case_has_an_answer():
    assert ({*FLASH_SIZES}, {*EFFICIENT_SIZES}) == ({*FLASH}, {*EFFICIENT})


@pytest.mark.parametrize(("case", "sizes"), FLASH_SIZES.items())
def test_flash_attention_allocates_parts_of_the_keys_and_its_backward_pass_accumulators(probe_results, case, sizes):
    assert probe_results["flash_attention"][case] == [*sizes]


@pytest.mark.parametrize(("case", "sizes"), EFFICIENT_SIZES.items())
def test_memory_efficient_attention_allocates_sums_and_a_workspace(probe_results, case, sizes):
    assert probe_results["efficient_attention"][case] == [*sizes]


def test_memory_efficient_attention_that_is_called_directly_allocates_the_same(probe_results):
    found = probe_results["direct_efficient_attention"]
    assert len(found) > 20
    assert found.pop("empty batch") == [[], []]
    assert found == {case: [*EFFICIENT_SIZES[case]] for case in found}


def test_memory_efficient_attention_of_concatenated_texts_has_a_workspace_for_the_longest_text(probe_results):
    """Of two texts with 8 heads of 192 values: the sums of 1024 rows, and blocks of 128 queries and 64 keys.

    The workspace has the gradients of 724 queries (6 blocks, 3 of 64 columns) and of keys and values (256 columns each)
    for each part of the keys: 12 of 64 keys, but at most 200 / (2 texts * 8 heads).
    """
    forward, backward, one_part = probe_results["packed_efficient_attention"]
    queries, keys = 6 * 3 * (4 * 128 * 64 + 16), 2 * 4 * 64 * 256
    assert forward == [4 * 8 * 1024 * 192]
    assert backward == [4 * 8 * 1024, 16 * (queries + 12 * keys)]
    assert one_part == [2 * 8 * 1024 * 192, 4 * 8 * 1024, 16 * (queries + keys)]


@pytest.mark.parametrize(
    ("case", "sizes"),
    [
        ("H200", ([], [4 * 12 * 1024 * 65 + 256])),
        ("H200, 192 values", ([], [4 * 2 * 16 * 512 * 193 + 256])),
        ("B200, 192 values", FLASH_SIZES["192 values"]),
        ("H200, deterministic", FLASH_SIZES["deterministic"]),
        ("H200, values half as wide as keys", ([], [4 * 8 * 1024 * 129 + 256])),
        ("A100", FLASH_SIZES["short on an A100"]),
        ("RTX 4090, 208 values", ([1_996_800], BACKWARD_OF_MORE_THAN_192_VALUES)),
        ("RTX 4090, 256 values", ([48_000, 12_288_000], [12_288, 3_145_728])),
        ("RTX 4090, 256 values, dropout", ([2_457_600], BACKWARD_OF_MORE_THAN_192_VALUES)),
    ],
)
def test_the_card_and_the_width_of_the_heads_choose_among_cudnns_flash_and_memory_efficient_attention(
    probe_results, case, sizes
):
    assert probe_results["chosen_attention"][case] == [*sizes]


def test_flash_attention_of_concatenated_texts_rounds_each_text_up(probe_results):
    tokens, values = 1024 + 2 * 128, 2 * 1024 * 8 * 64
    assert probe_results["packed_attention"] == [[], [values, 4 * 8 * tokens, 4 * 8 * tokens * 64, values, values]]


def test_an_attention_fails_as_on_a_gpu_if_the_only_allowed_kernel_does_not_support_it(probe_results):
    assert probe_results["unsupported_attention"] == ["No available kernel. Aborting execution."] * 4
