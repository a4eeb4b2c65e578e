"""The properties of an operation that follow from its key: family, bytes, arithmetic operations."""

import json

import pytest

from experiments.prediction.times.operations import canonical_key, parse


def tensor(*sizes: int, type: str = "BFloat16", **properties: object) -> dict[str, object]:
    return {"type": type, "sizes": list(sizes), **properties}


def operation(name: str, *arguments: object):
    return parse(json.dumps([name, *arguments]))


@pytest.mark.parametrize(
    ("name", "arguments", "flop"),
    [
        ("aten::mm.out", (tensor(8, 16), tensor(16, 4), tensor(8, 4)), 2 * 8 * 16 * 4),
        ("aten::addmm.out", (tensor(4), tensor(8, 16), tensor(16, 4), 1, 1, tensor(8, 4)), 2 * 8 * 16 * 4),
        ("aten::addmm.default", (tensor(4), tensor(8, 16), tensor(16, 4), 1, 1), 2 * 8 * 16 * 4),
        ("aten::addmm_.default", (tensor(8, 4), tensor(8, 16), tensor(16, 4), 1, 1), 2 * 8 * 16 * 4),
        ("aten::addmm.out", (tensor(8, 4), tensor(8, 16), tensor(16, 4), 1, 1, tensor(8, 4)), 2 * 8 * 16 * 4),
        ("aten::mm.default", (tensor(8, 16), tensor(16, 4)), 2 * 8 * 16 * 4),
        ("aten::addmv.out", (tensor(8), tensor(8, 16), tensor(16), 1, 1, tensor(8)), 2 * 8 * 16),
        ("aten::bmm.out", (tensor(3, 8, 16), tensor(3, 16, 4), tensor(3, 8, 4)), 3 * 2 * 8 * 16 * 4),
        (
            "aten::_scaled_dot_product_flash_attention.default",
            (tensor(2, 4, 32, 8), tensor(2, 4, 32, 8), tensor(2, 4, 32, 8), 0, True),
            4 * 2 * 4 * 32 * 32 * 8,
        ),
        (
            "aten::_scaled_dot_product_flash_attention_backward.default",
            (tensor(2, 4, 32, 8), tensor(2, 4, 32, 8), tensor(2, 4, 32, 8), tensor(2, 4, 32, 8)),
            10 * 2 * 4 * 32 * 32 * 8,
        ),
        (
            "aten::_flash_attention_forward.default",
            (*[tensor(96, 4, 8)] * 3, *[tensor(4, type="Int")] * 2, 50, 50, 0.0, True, False),
            4 * (96 * 4 * 8) * 32,
        ),
        (
            "aten::_flash_attention_backward.default",
            (*[tensor(96, 4, 8)] * 5, tensor(4, 96, type="Float"), *[tensor(4, type="Int")] * 2, 50, 50, 0.0, True),
            10 * (96 * 4 * 8) * 32,
        ),
        (
            "aten::convolution.default",
            (tensor(2, 3, 8, 8), tensor(16, 3, 4, 4), None, [4, 4], [0, 0], [1, 1], False, [0, 0], 1),
            2 * (2 * 2 * 2 * 16) * (3 * 4 * 4),
        ),
        ("aten::add.out", (tensor(8, 16), tensor(8, 16), 1, tensor(8, 16)), 0),
    ],
)
def test_arithmetic_operations_of_matrix_products_attention_and_convolutions_are_counted(name, arguments, flop):
    assert operation(name, *arguments).flop == flop


@pytest.mark.parametrize(
    ("name", "arguments", "family"),
    [
        ("aten::mm.out", (tensor(8, 16),), "matrix products"),
        ("aten::_scaled_dot_product_efficient_attention.default", (), "attention"),
        ("aten::_flash_attention_backward.default", (), "attention"),
        ("aten::_foreach_addcmul_.Scalar", (), "optimizer"),
        ("aten::native_layer_norm.default", (), "reductions"),
        ("aten::index_select.default", (), "indexing"),
        ("aten::gelu.out", (), "element-wise"),
        ("aten::copy_.default", (tensor(8), tensor(8)), "copies"),
        ("aten::copy_.default", (tensor(8), tensor(8, host=1)), "host transfers"),
        ("bitsandbytes::dequantize_4bit.default", (), "quantization"),
        ("communication::allreduce", (tensor(8, type="Byte"), 4), "communication"),
        ("host::adam", (tensor(8, host=1),), "CPU optimizer"),
    ],
)
def test_the_family_of_an_operation_follows_from_its_name_and_from_where_its_tensors_are(name, arguments, family):
    assert operation(name, *arguments).family == family


@pytest.mark.parametrize(
    ("name", "arguments", "sizes"),
    [
        ("aten::mm.out", (tensor(8, 16), tensor(16, 4), tensor(8, 4)), (8, 4, 16, 1)),
        ("aten::addmm.out", (tensor(4), tensor(8, 16), tensor(16, 4), 1, 1, tensor(8, 4)), (8, 4, 16, 1)),
        ("aten::bmm.out", (tensor(3, 8, 16), tensor(3, 16, 4), tensor(3, 8, 4)), (8, 4, 16, 3)),
        ("aten::addmv.out", (tensor(8), tensor(8, 16), tensor(16), 1, 1, tensor(8)), None),
        ("aten::add.out", (tensor(8, 16), tensor(8, 16), 1, tensor(8, 16)), None),
    ],
)
def test_only_a_matrix_product_has_rows_columns_depth_and_a_count(name, arguments, sizes):
    assert operation(name, *arguments).product_sizes == sizes


def test_the_layout_of_an_operation_distinguishes_strided_broadcast_and_small_tensors():
    first, second = tensor(8, 16, strides=[1, 8]), tensor(8, 16, type="Float", strides=[0, 1])
    found = operation("aten::add.out", first, second, tensor(16), tensor(), tensor(8, 16)).layout
    assert found == (
        "BFloat16-strided-largest Float-broadcast-largest BFloat16-contiguous BFloat16-contiguous-scalar "
        "BFloat16-contiguous-largest"
    )


def test_the_bytes_of_an_operation_are_those_of_all_tensors_even_of_a_long_list():
    listed = {"type": "Float", "tensors": 100, "elements": 1000}
    assert operation("aten::_foreach_mul_.Scalar", listed, 0.9).total_bytes == 4000
    assert operation("aten::add.out", tensor(8, 16), tensor(8, 16), 1, tensor(8, 16)).total_bytes == 3 * 8 * 16 * 2


def key(name: str, *arguments: object) -> str:
    return json.dumps([name, *arguments])


REDUCED, RESULT = (tensor(8, 4), [0], True, None), tensor(1, 4)
PRODUCTS = (
    key("aten::mm.out", tensor(8, 4), tensor(4, 2), tensor(8, 2)),
    key("aten::mm.default", tensor(8, 4), tensor(4, 2)),
)
SUMS = key("aten::add.out", tensor(8), tensor(8), 1, tensor(8)), key("aten::add.Tensor", tensor(8), tensor(8), 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        PRODUCTS,
        SUMS,
        (SUMS[0], key("aten::add_.Tensor", tensor(8), tensor(8), 1)),
        (key("aten::sum.IntList_out", *REDUCED, RESULT), key("aten::sum.dim_IntList", *REDUCED)),
        (key("aten::silu_backward.grad_input", tensor(8), tensor(8)), key("aten::silu_backward.default", tensor(8))),
        (key("aten::topk.values", tensor(8), 2, tensor(2), tensor(2)), key("aten::topk.default", tensor(8), 2)),
        [key("aten::lerp.Scalar_out", tensor(8), weight, tensor(8)) for weight in (0.1, 0.25)],
    ],
)
def test_operations_that_compute_the_same_have_equal_keys(one, other):
    assert canonical_key(one) == canonical_key(other)


def test_operations_that_compute_different_things_have_different_keys():
    one, other = (key("aten::sum.IntList_out", tensor(8, 8), [dim], tensor(8)) for dim in (0, 1))
    assert canonical_key(one) != canonical_key(other)


@pytest.mark.parametrize(("with_result", "without"), [PRODUCTS, SUMS])
def test_the_bytes_of_an_operation_include_its_result_even_if_no_argument_is_the_result(with_result, without):
    assert parse(with_result).total_bytes == parse(without).total_bytes


def test_operations_of_bitsandbytes_have_a_family_and_known_bytes_and_arithmetic_operations():
    weight, scales = tensor(32, 1, type="Byte"), tensor(1, type="Float")
    restored = operation("bitsandbytes::dequantize_4bit.default", weight, scales, 64, "nf4", [8, 8], {"dtype": "Half"})
    assert (restored.family, restored.total_bytes, restored.flop) == ("quantization", 32 + 4 + 2 * 8 * 8, 0.0)
    product = operation("bitsandbytes::gemm_4bit.default", tensor(4, 8), weight, [16, 8], scales)
    assert (product.family, product.data_type, product.flop) == ("quantization", "BFloat16", 2 * 4 * 8 * 16)
    update = operation("bitsandbytes::optimizer_update_8bit_blockwise.default", "adam", tensor(8), tensor(8), weight)
    assert (update.family, update.data_type) == ("optimizer", "BFloat16")
