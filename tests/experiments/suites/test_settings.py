import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.errors import InputError
from experiments.suites.settings import Settings
from experiments.suites.yaml_schema import validate
from tests.support.results.in_memory import COMMON

ABOVE_0 = st.integers(1, 64)


@given(batch=ABOVE_0, accumulate=ABOVE_0, devices=st.integers(1, 8), nodes=st.integers(1, 4))
def test_any_two_of_batch_size_accumulation_and_global_batch_size_determine_the_third(
    batch, accumulate, devices, nodes
):
    total = batch * accumulate * devices * nodes
    numbers = {"batch_size": batch, "accumulate": accumulate, "global_batch_size": total}
    for left_out in (None, *numbers):
        given_numbers = {key: value for key, value in numbers.items() if key != left_out}
        settings = validate(Settings, {**COMMON, **given_numbers, "devices": devices, "nodes": nodes}, "row")
        assert {key: getattr(settings, key) for key in numbers} == numbers
        assert settings.world_size == devices * nodes


@given(batch=ABOVE_0, accumulate=ABOVE_0, devices=st.integers(1, 8), extra=st.integers(1, 1000))
def test_a_global_batch_size_that_the_batch_size_does_not_divide_is_rejected(batch, accumulate, devices, extra):
    part = batch * devices
    total = part * accumulate + extra % part
    numbers = {**COMMON, "batch_size": batch, "global_batch_size": total, "devices": devices}
    if total % part:
        with pytest.raises(InputError, match=rf"global_batch_size = {total}: .*multiples of {part}$"):
            validate(Settings, numbers, "row")
    else:
        assert validate(Settings, numbers, "row").accumulate == accumulate


@given(batch=ABOVE_0)
def test_without_accumulation_a_batch_is_one_micro_step(batch):
    settings = validate(Settings, {**COMMON, "batch_size": batch}, "row")
    assert (settings.accumulate, settings.global_batch_size) == (1, batch)


@pytest.mark.parametrize("accumulate", [4, 32])
def test_accumulation_that_divides_the_batches_of_an_epoch_is_accepted(accumulate):
    data = {**COMMON, "train_samples": 512, "batch_size": 16, "accumulate": accumulate}
    assert validate(Settings, data, "here").accumulate == accumulate


@pytest.mark.parametrize("accumulate", [5, 64])
def test_accumulation_that_does_not_divide_the_batches_of_an_epoch_is_rejected(accumulate):
    data = {**COMMON, "train_samples": 512, "batch_size": 16, "accumulate": accumulate}
    says = (
        f"here: accumulate = {accumulate}: does not divide the 32 batches of an epoch .*; allowed: 1, 2, 4, 8, 16, 32$"
    )
    with pytest.raises(InputError, match=says):
        validate(Settings, data, "here")
