"""The length of a lease that the rows of suites need."""

from datetime import timedelta

import pytest

from experiments.history import durations, lease_length
from experiments.history.durations import RowTime
from experiments.history.lease_length import ExpectedTimes, LeaseTooShort, expected_times_on
from experiments.history.outside_steps import OutsideSteps
from experiments.suites.suite import suites_in_group
from provision.models import Host

ONCE = OutsideSteps(
    prepare_s=2.0,
    libraries_s=10.0,
    between_rows_s=1.0,
    job_s=5.0,
    parts={},
    longer_share={"texts": 1.0, "images in 32 bit": 0.0, "images in 16 bit": 0.5},
    error_share=0.5,
    runs=(),
)


@pytest.fixture(autouse=True)
def once(monkeypatch):
    for module in (durations, lease_length):
        monkeypatch.setattr(module, "outside_steps", lambda: ONCE)


def row_time(low_s, high_s=None, gpus=1, source="measured on X", other_chip=False):
    high_s = low_s if high_s is None else high_s
    return RowTime((low_s + high_s) / 2, low_s, high_s, 1.0, gpus, source, other_chip)


def test_the_times_of_suites_are_added_up_and_the_sources_of_the_times_are_counted():
    times = ExpectedTimes(
        {"a": [row_time(90), row_time(30)], "b": [row_time(60, 200, source="predicted for y"), None]}, 2
    )
    assert times.total_time() == (12.0 + 90 + 12.0 + 130, 12.0 + 90 + 12.0 + 60, 12.0 + 90 + 12.0 + 200)
    assert times.summary == (
        "time on 2 GPUs: a 2 min, b more than 3 min (2 to 4)"
        " (2 rows measured on X, 1 row predicted for y, 1 row unknown); setup 1h (assumed)"
    )


def test_rows_that_are_jobs_do_not_share_a_warm_process():
    assert ExpectedTimes({"a": [row_time(90)]}, 1, rows_are_jobs=True).total_time().expected_s == 92.0
    assert (ONCE.around_row_s(True), ONCE.around_row_s(False)) == (15.0, 1.0)


def test_the_expected_time_of_a_run_is_unknown_if_no_row_has_a_time():
    assert ExpectedTimes({"a": [row_time(90)]}, 0).rows_summary.startswith("time without a GPU: a 2 min ")
    assert ExpectedTimes({"a": [None]}, 1).summary.startswith("time: unknown")


def test_the_lease_has_time_for_setup_and_rows_with_a_margin():
    assert ExpectedTimes({"a": [row_time(60, 600)]}, 1).lease_length() == timedelta(hours=1.5)
    assert ExpectedTimes({"a": [row_time(3600 - ONCE.once_s(False))]}, 1).lease_length() == timedelta(hours=2.5)


@pytest.mark.parametrize("time", [None, row_time(60, other_chip=True)])
def test_no_length_of_a_lease_is_chosen_if_the_time_of_a_row_on_the_card_is_unknown(time):
    assert ExpectedTimes({"a": [row_time(60), time]}, 1).lease_length() is None


def test_a_lease_too_short_for_its_rows_is_rejected_and_a_sufficient_length_is_named():
    once_s = ONCE.once_s(False)
    times = ExpectedTimes({"a": [row_time(7200 - once_s, 9000 - once_s)]}, 1)
    times.require_to_end_within(timedelta(hours=2))
    with pytest.raises(LeaseTooShort, match=r"1h: its rows need 135 min \(120 to 150\); allowed: --hours 4h30m"):
        times.require_to_end_within(timedelta(hours=1))


def test_the_length_of_a_lease_for_the_labs_is_chosen_on_a_node_of_the_course(tmp_path):
    node = Host("1", "P3", "CHI@UC", "gpu_a100_pcie", gpu_model="NVIDIA A100 PCIe 80GB", gpus=4, gpu_memory_gib=80)
    times = expected_times_on([node], suites_in_group("single"), tmp_path)
    assert (times.gpus, times.lease_length()) == (4, timedelta(hours=1.5))
