from math import inf

import pytest

from experiments.results.wording import (
    choose_memory_unit,
    format_bounds,
    format_duration,
    format_number,
    format_parameter_count,
    format_size,
    is_miniature_that_ran,
    outcome_in_words,
)
from tests.support.results.in_memory import result


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(2.0, None, "at least 2"), (None, 0.7, "at most 0.7"), (None, 0.0, "at most 0"), (13.3, 14.7, "13.3 to 14.7")],
)
def test_bounds_are_written_in_words(low, high, words):
    assert format_bounds(low, high) == words
    assert format_bounds(5.0, 5.0) == "5"


def test_numbers_are_rounded_for_reading():
    assert [format_number(value) for value in (0.0, 0.1234, 78.5678, 12345.6)] == ["0", "0.123", "78.6", "12,346"]
    assert [format_number(value) for value in (999.4, 1000.0, -1234.5, inf)] == [
        "999",
        "1,000",
        "-1,234",
        "infinitely many",
    ]


def test_a_size_is_shown_in_the_largest_unit_in_which_it_is_at_least_one_half():
    sizes = {38.512: "38.51 GiB", 0.5: "0.5 GiB", 0.4999: "511.9 MiB", 0.5 / 1024: "0.5 MiB", 0.0: "0 GiB"}
    assert {gib: format_size(gib) for gib in sizes} == sizes
    assert format_size(0.4 / 1024) == "409.6 KiB"
    assert format_size(0.1 / 2**20) == "0.1 KiB"
    assert choose_memory_unit(-2.0) == ("GiB", 1)


def test_numbers_of_parameters_are_in_millions_below_a_billion():
    counts = {6_738_415_616: "6.74 B", 10**9: "1.00 B", 999_900_000: "999.9 M", 350_100_000: "350.1 M"}
    assert {count: format_parameter_count(count) for count in counts} == counts


def test_a_duration_below_one_hour_has_no_hours():
    times = {0: "0:00", 59.4: "0:59", 60: "1:00", 3599: "59:59", 3600: "1:00:00", 36061: "10:01:01"}
    assert {seconds: format_duration(seconds) for seconds in times} == times


@pytest.mark.parametrize(
    ("outcome", "size", "words"),
    [("fits", "tiny", "ran (miniature)"), ("fits", "full", "fits"), ("oom", "tiny", "out of GPU memory")],
)
def test_the_outcome_of_a_miniature_that_fits_is_shown_as_ran(outcome, size, words):
    assert outcome_in_words(outcome, size) == words
    assert is_miniature_that_ran(result("a", outcome, size=size)) == (words == "ran (miniature)")
