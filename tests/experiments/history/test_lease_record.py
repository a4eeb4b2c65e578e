"""What leases cost, and what was predicted."""

from datetime import timedelta

import pytest

from experiments.history.lease_record import (
    FILE,
    NO_LEASES,
    LeaseRecord,
    append_record,
    earlier_leases,
    read_records,
)
from tests.testbed.chain.rehearse import STORED_LEASES, copy_stored_leases


def record(used_s=1000.0, run_s=400.0, node_type="gpu_a100_pcie", su_per_hour=36.0):
    return LeaseRecord(
        name="node",
        node_type=node_type,
        su_per_hour=su_per_hour,
        predicted_setup_s=500.0,
        predicted_run_s=450.0,
        expected_run_s=200.0,
        used_s=used_s,
        run_s=run_s,
    )


def test_used_and_predicted_service_units_are_shown_next_to_each_other():
    assert record().in_words == (
        "lease node: 10 service units, predicted 9.5 (-5%); setup 10:00, predicted 8:20; suites 6:40, predicted 7:30"
    )
    assert record(su_per_hour=None).in_words.startswith("lease node: price unknown (-5%); ")


def test_time_of_a_lease_before_its_request_is_part_of_the_predicted_time_but_not_of_the_setup():
    late = record().model_copy(update={"before_request_s": 50.0})
    assert (late.setup_s, late.predicted_s, late.relative_error) == (550.0, 1000.0, 0.0)


def test_expected_times_are_medians_over_earlier_leases_of_the_same_node_type():
    records = [record(), record(used_s=900.0, run_s=200.0), record(used_s=2000.0, run_s=600.0), record(node_type="kvm")]
    found = earlier_leases(records, "gpu_a100_pcie")
    assert found == (timedelta(seconds=700), 2.0, "measured on 3 leases")
    assert found.in_words == "setup 11m (measured on 3 leases)"
    assert earlier_leases(records, "gpu_h100") == NO_LEASES


def test_records_are_appended_to_the_file_and_broken_lines_of_it_are_left_out(tmp_path):
    results = tmp_path / "results"
    assert read_records(results) == []
    append_record(results, record())
    with (results / FILE).open("a") as file:
        file.write('{"name":\n')
    append_record(results, record(used_s=5.0))
    assert [one.used_s for one in read_records(results)] == [1000.0, 5.0]


@pytest.mark.parametrize("field", ["used_s", "run_s", "expected_run_s"])
@pytest.mark.parametrize("value", ["0", "-1", "1e999"])
def test_a_record_with_a_time_that_is_not_positive_and_finite_is_left_out(tmp_path, field, value):
    line = record().model_dump_json()
    number = f'"{field}":{getattr(record(), field)}'
    assert number in line
    (tmp_path / FILE).write_text(line.replace(number, f'"{field}":{value}') + "\n")
    assert earlier_leases(read_records(tmp_path), "gpu_a100_pcie") == NO_LEASES


def test_the_error_of_a_predicted_lease_time_is_relative_to_the_used_time():
    assert record(used_s=500.0).relative_error == pytest.approx(0.9)


def test_the_leases_of_stored_rehearsals_are_copied_into_results_that_record_no_leases(tmp_path):
    stored = read_records(STORED_LEASES.parent)
    copy_stored_leases(tmp_path / "new")
    assert read_records(tmp_path / "new") == stored != []
    append_record(tmp_path / "own", record())
    copy_stored_leases(tmp_path / "own")
    assert read_records(tmp_path / "own") == [record()]
