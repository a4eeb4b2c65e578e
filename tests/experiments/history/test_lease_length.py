"""The length of a lease that the rows of suites need."""

from datetime import timedelta

import pytest

from experiments.history.durations import RowTime
from experiments.history.lease_length import ExpectedTimes, LeaseTooShort, expected_times_on, makespan_s
from experiments.suites.suite import suites_in_group
from provision.models import Host


def row_time(low_s, high_s=None, gpus=1, source="measured on X", other_chip=False):
    return RowTime(low_s, low_s if high_s is None else high_s, gpus, source, other_chip)


@pytest.mark.parametrize(
    ("rows", "gpus", "seconds"),
    [
        ([], 4, 0),
        ([(10, 1), (20, 1), (30, 1)], 1, 60),
        ([(10, 1), (20, 1), (30, 1)], 2, 40),
        ([(10, 1), (20, 4), (5, 1)], 4, 35),
        ([(10, 8)], 4, 10),
        ([(10, 0), (10, 0)], 2, 20),
    ],
)
def test_each_row_starts_as_soon_as_its_gpus_are_free(rows, gpus, seconds):
    assert makespan_s(rows, gpus) == seconds


def test_suites_run_one_after_another_and_the_sources_are_counted():
    times = ExpectedTimes(
        {"a": [row_time(90), row_time(30)], "b": [row_time(60, 120, source="predicted for y"), None]}, 2
    )
    assert times.total_time_range() == (timedelta(seconds=150), timedelta(seconds=210))
    assert times.summary == (
        "time on 2 GPUs: a 2 min, b more than 1 to 2 min (2 rows measured on X, 1 row predicted for y, 1 row unknown)"
        "; setup 1h (assumed)"
    )


def test_the_expected_time_of_a_run_is_unknown_if_no_row_has_a_time():
    assert ExpectedTimes({"a": [row_time(90)]}, 0).rows_summary.startswith("time without a GPU: a 2 min")
    assert ExpectedTimes({"a": [None]}, 1).summary.startswith("time: unknown")


def test_the_lease_has_room_for_setup_and_rows_with_a_margin():
    assert ExpectedTimes({"a": [row_time(60, 600)]}, 1).lease_length() == timedelta(hours=1.5)
    assert ExpectedTimes({"a": [row_time(3600)]}, 1).lease_length() == timedelta(hours=2.5)


@pytest.mark.parametrize("time", [None, row_time(60, other_chip=True)])
def test_no_length_is_chosen_if_a_time_is_not_known_for_the_card(time):
    assert ExpectedTimes({"a": [row_time(60), time]}, 1).lease_length() is None


def test_a_lease_too_short_for_its_rows_is_rejected_with_a_sufficient_length():
    times = ExpectedTimes({"a": [row_time(7200, 9000)]}, 1)
    times.require_to_end_within(timedelta(hours=2))
    with pytest.raises(LeaseTooShort, match=r"a lease of 1h: its rows need 120 to 150 min; allowed: --hours 4h30m"):
        times.require_to_end_within(timedelta(hours=1))


def test_the_labs_have_times_on_the_nodes_of_the_course(tmp_path):
    node = Host("1", "P3", "CHI@UC", "gpu_a100_pcie", gpu_model="NVIDIA A100 PCIe 80GB", gpus=4, gpu_memory_gib=80)
    times = expected_times_on([node], suites_in_group("single"), tmp_path)
    assert (times.gpus, times.lease_length()) == (4, timedelta(hours=1.5))
