"""The attainable time of an operation on a card: start, arithmetic with whole tiles, or bandwidth."""

import json

import pytest

from experiments.prediction.times.limits import (
    FULL_WIDTH_SHARE,
    KERNEL_START_S,
    PRECISION_BY_TYPE,
    attainable_s,
    tile_waste,
)
from experiments.prediction.times.operations import parse
from experiments.prediction.times.table import TABLES, read_lines
from experiments.suites.cards import card_named

H100, A100, V100 = (card_named(name) for name in ("h100_80gb", "a100_80gb", "v100_32gb"))


def product(rows: int, columns: int, depth: int, kind: str = "Float", name: str = "aten::mm.out"):
    sizes = ([rows, depth], [depth, columns], [rows, columns])
    return parse(json.dumps([name, *({"type": kind, "sizes": size} for size in sizes)]))


def addition(elements: int):
    return parse(json.dumps(["aten::add.out", *[{"type": "Float", "sizes": [elements]}] * 3]))


def test_a_memory_bound_kernel_takes_its_start_time_and_the_time_that_the_bandwidth_allows():
    assert attainable_s(addition(10**9), A100) == pytest.approx(KERNEL_START_S + 12e9 / (A100.bandwidth_gb_s * 1e9))
    assert attainable_s(addition(1), A100) == pytest.approx(KERNEL_START_S, rel=1e-4)


def test_a_matrix_product_in_16_bit_reaches_the_peak_rate():
    operation = product(8192, 8192, 8192, "BFloat16")
    assert attainable_s(operation, H100) == pytest.approx(KERNEL_START_S + operation.flop / 989e12)


@pytest.mark.parametrize("sizes", [(0, 64, 64), (64, 0, 64), (64, 64, 0)])
def test_an_empty_matrix_product_takes_its_start_time_and_the_time_that_the_bandwidth_allows(sizes):
    operation = product(*sizes)
    assert attainable_s(operation, H100) == pytest.approx(
        KERNEL_START_S + operation.total_bytes / (H100.bandwidth_gb_s * 1e9)
    )


def test_a_matrix_product_in_32_bit_reaches_the_peak_rate_only_with_64_units_per_multiprocessor():
    operation = product(128 * 108, 128 * 132 * 80, 4096)  # whole waves of the largest tile on all three cards
    for card, share in ((A100, 1.0), (V100, 1.0), (H100, FULL_WIDTH_SHARE)):
        assert tile_waste((128 * 108, 128 * 132 * 80, 4096, 1), card) == 1.0
        expected_s = KERNEL_START_S + operation.flop / (share * card.peak_tflops["fp32"] * 1e12)
        assert attainable_s(operation, card) == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("sizes", "waste"),
    [
        ((128 * 132, 128, 256, 1), 1.0),  # one wave of 132 tiles
        ((128 * 133, 128, 256, 1), 5 * 132 / (4 * 133) / 0.85),  # a part of a second wave: smaller tiles waste less
        ((128, 128, 256, 132), 1.0),  # one tile of each of 132 products
        ((128 * 66, 128, 512, 1), 1.03),  # two parts of the depth for each tile
        ((1, 128 * 132, 256, 1), 64 / 0.9),  # one row of a tile
    ],
)
def test_tiles_that_do_not_fill_the_multiprocessors_waste_computing_power(sizes, waste):
    assert tile_waste(sizes, H100) == pytest.approx(waste)


def test_the_attainable_share_of_the_peak_rate_is_the_highest_share_in_the_stored_table():
    measured = [line for line in read_lines(TABLES / "h100_80gb.jsonl.gz")[1:] if "device_s" in line]
    operations = [(parse(line["key"]), line["device_s"]) for line in measured]
    shares = [
        operation.flop / device_s / (1e12 * H100.peak_tflops["fp32"])
        for operation, device_s in operations
        if operation.product_sizes and PRECISION_BY_TYPE.get(operation.data_type) == "fp32"
    ]
    assert max(shares) == pytest.approx(FULL_WIDTH_SHARE, abs=5e-4)
