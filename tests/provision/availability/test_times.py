"""Times as users type and read them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision.availability import times
from provision.errors import BadTime
from provision.models import DailyWindow

HELSINKI = ZoneInfo("Europe/Helsinki")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("3", 180), ("3h", 180), ("2h50m", 170), (" 2H50M ", 170), ("45m", 45), ("7d", 10080), ("1d2h", 1560), ("0", 0)],
)
def test_a_length_is_a_number_of_hours_or_has_units(text, minutes):
    assert times.parse_length(text) == timedelta(minutes=minutes)


@pytest.mark.parametrize("text", ["", " ", "h", "-3", "2.5", "3 h", "2h50", "3x", "1e3", "9999999h", "٣h"])
def test_the_error_for_a_malformed_length_gives_examples(text):
    with pytest.raises(BadTime) as error:
        times.parse_length(text)
    assert str(error.value) == f"length {text!r} is malformed; allowed: 3 or 3h (hours), 2h50m, 45m, 7d"


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T14:00Z",
        " 2026-11-23 14:00Z ",
        "2026-11-23T16:00+02:00",
        "2026-11-23 16:00 Europe/Helsinki",
        "2026-11-23T23:00  Asia/Tokyo",
        "2026-11-23 14:00 UTC",
    ],
)
def test_a_time_with_an_offset_or_the_name_of_a_zone_is_converted_to_utc(text):
    assert times.parse_time(text) == datetime(2026, 11, 23, 14, tzinfo=UTC)
    assert times.parse_time(text).tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2026-11-23 14:00", "has no time zone; allowed: 20"),
        ("2026-11-23\n14:00", "has no time zone"),
        ("tomorrow", "is malformed; allowed: 20"),
        ("", "is malformed"),
        ("2026-13-01T00:00Z", "is malformed"),
        ("14:00 Europe/Helsinki", "is malformed"),
        ("2026-11-23T14:00Z Europe/Helsinki", "is malformed"),
        ("2026-11-23 14:00 Europe/Helsinky", "unknown time zone 'Europe/Helsinky'; similar names: Europe/Helsinki, "),
        ("2026-10-25 03:30 Europe/Helsinki", "a clock change skips or repeats it; allowed: a time in UTC or with"),
        ("2027-03-28 03:30 Europe/Helsinki", "a clock change skips or repeats it; allowed: a time in UTC or with"),
        ("2026-11-23T14:00:30Z", "allowed: whole minutes"),
        ("0001-01-01T00:00+14:00", "allowed: the years 1970 to 9998"),
        ("9999-12-31T23:59-14:00", "allowed: the years 1970 to 9998"),
    ],
)
def test_a_malformed_or_ambiguous_time_is_rejected(text, message):
    with pytest.raises(BadTime) as error:
        times.parse_time(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "begin", "end"), [("9-17", 540, 1020), ("8:30-12", 510, 720), ("22 - 6", 1320, 360), ("18-24", 1080, 1440)]
)
def test_hours_are_a_daily_window_that_may_cross_midnight(text, begin, end):
    assert times.parse_hours(text, HELSINKI) == DailyWindow(begin, end, HELSINKI)


@pytest.mark.parametrize("text", ["", "9", "9-9", "0-24", "24-0", "9-25", "24:30-3", "9-17:75", "nine-five", "9-17-19"])
def test_hours_that_are_not_a_daily_window_are_rejected(text):
    with pytest.raises(BadTime, match=r"are not a daily window; allowed: 9-17, 8:30-12:00, 22-6 \(over midnight\)$"):
        times.parse_hours(text, HELSINKI)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Helsinki", "Europe/Helsinki"),
        ("new york", "America/New_York"),
        ("europe/berlin", "Europe/Berlin"),
        ("Rome", "Europe/Rome"),
    ],
)
def test_the_error_for_a_misspelled_zone_lists_similar_names(typed, meant):
    with pytest.raises(BadTime, match=f"^unknown time zone {typed!r}; similar names: {meant}, "):
        times.zone_named(typed)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "/etc/localtime", "a\0b"])
def test_a_time_zone_that_is_a_path_is_rejected(name):
    with pytest.raises(BadTime, match="unknown time zone"):
        times.zone_named(name)


@given(st.text() | st.from_regex(r"[0-9hmdTZ:\-+ ]{1,20}"))
def test_any_input_is_parsed_or_rejected_in_one_line(text):
    for read in (times.parse_length, times.parse_time, lambda text: times.parse_hours(text, HELSINKI)):
        rejection = ""
        try:
            read(text)
        except BadTime as error:
            rejection = str(error)
        assert len(rejection.splitlines()) <= 1


def test_the_local_zone_is_that_of_the_variable_tz_or_otherwise_of_the_machine_or_otherwise_utc(monkeypatch, tmp_path):
    machine = tmp_path / "localtime"
    machine.symlink_to(Path("/usr/share/zoneinfo/Asia/Tokyo"))
    monkeypatch.setattr(times, "LOCALTIME", machine)
    monkeypatch.setenv("TZ", "Europe/Helsinki")
    assert times.local_zone().key == "Europe/Helsinki"
    monkeypatch.delenv("TZ")
    assert times.local_zone().key == "Asia/Tokyo"
    monkeypatch.setattr(times, "LOCALTIME", tmp_path / "none")
    assert times.local_zone().key == "UTC"


@pytest.mark.parametrize(("minutes", "words"), [(180, "3h"), (170, "2h50m"), (45, "45m"), (0, "0m"), (10080, "168h")])
def test_a_length_as_it_is_printed_can_be_given_as_input(minutes, words):
    assert times.length_in_words(timedelta(minutes=minutes)) == words
    assert times.parse_length(words) == timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("hour", "zone", "words"),
    [
        (14, "Europe/Helsinki", "2026-11-23 14:00 UTC (16:00 Europe/Helsinki)"),
        (23, "Europe/Helsinki", "2026-11-23 23:00 UTC (2026-11-24 01:00 Europe/Helsinki)"),
        (14, "Etc/UTC", "2026-11-23 14:00 UTC"),
        (14, "Europe/London", "2026-11-23 14:00 UTC (14:00 Europe/London)"),
    ],
)
def test_a_time_is_shown_in_utc_and_local_time(hour, zone, words):
    assert times.time_in_words(datetime(2026, 11, 23, hour, tzinfo=UTC), ZoneInfo(zone)) == words
