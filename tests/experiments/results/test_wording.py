import pytest

from experiments.results.wording import format_bounds, format_number


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(2.0, None, "at least 2"), (None, 0.7, "at most 0.7"), (None, 0.0, "at most 0"), (13.3, 14.7, "13.3 to 14.7")],
)
def test_bounds_are_written_in_words(low, high, words):
    assert format_bounds(low, high) == words
    assert format_bounds(5.0, 5.0) == "5"


def test_numbers_are_rounded_for_reading():
    assert [format_number(value) for value in (0.0, 0.1234, 78.5678, 12345.6)] == ["0", "0.123", "78.6", "12,346"]
