"""Parse and format lengths of time, times with a time zone, and daily windows.

The parsers raise BadTime for malformed and ambiguous input.
"""

import os
import re
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

from provision.errors import BadTime, most_similar_names
from provision.models import DailyWindow

MINUTE = timedelta(minutes=1)
DAY_MINUTES = 24 * 60
YEARS = range(1970, 9999)
LOCALTIME = Path("/etc/localtime")

LENGTH = re.compile(r"(?P<hours>\d{1,6})|(?:(?P<d>\d{1,6})d)?(?:(?P<h>\d{1,6})h)?(?:(?P<m>\d{1,6})m)?", re.ASCII)
TIME_OF_DAY = r"(\d{1,2})(?::(\d\d))?"
HOURS = re.compile(f"{TIME_OF_DAY}-{TIME_OF_DAY}", re.ASCII)
"""The text of a daily window, such as 9-17 or 8:30-12."""


def parse_length(text: str) -> timedelta:
    """Parse a length of time: 3 or 3h (hours), 7d, 2h50m, 45m."""
    match = LENGTH.fullmatch(text.strip().lower())
    if not text.strip() or not match:
        raise BadTime(f"length {text!r} is malformed; allowed: 3 or 3h (hours), 2h50m, 45m, 7d")
    days, hours, minutes = (int(match[part] or 0) for part in "dhm")
    return timedelta(days=days, hours=hours + int(match["hours"] or 0), minutes=minutes)


def parse_time(text: str) -> datetime:
    """Parse a time with an offset or a zone, 2026-11-23T14:00Z or 2026-11-23 14:00 Asia/Tokyo, and return it in UTC.

    A local time that a clock change skips or repeats is rejected.
    """
    parsed, zone = _parse_iso(text.strip()), None
    if parsed is None:
        moment, _, name = text.strip().rpartition(" ")
        parsed = _parse_iso(moment.rstrip())
        zone = zone_named(name) if parsed else None
    if parsed is None or (parsed.tzinfo and zone):
        raise BadTime(f"time {text!r} is malformed; allowed: {_time_examples()}")
    if parsed.tzinfo is None and zone is None:
        raise BadTime(f"time {text!r} has no time zone; allowed: {_time_examples()}")
    return _convert_to_utc(parsed if zone is None else parsed.replace(tzinfo=zone), text)


def parse_hours(text: str, zone: ZoneInfo) -> DailyWindow:
    """Parse a daily window in the local time of ``zone``: 9-17, 8:30-12, or 22-6 (over midnight)."""
    match = HOURS.fullmatch(text.replace(" ", ""))
    begin, end = (
        _minutes_of_day(match[1], match[2]) if match else -1,
        _minutes_of_day(match[3], match[4]) if match else -1,
    )
    if min(begin, end) < 0 or max(begin, end) > DAY_MINUTES or (end - begin) % DAY_MINUTES == 0:
        raise BadTime(f"hours {text!r} are not a daily window; allowed: 9-17, 8:30-12:00, 22-6 (over midnight)")
    return DailyWindow(begin, end, zone)


def zone_named(name: str) -> ZoneInfo:
    """Return a time zone by its name, such as Europe/Helsinki or UTC."""
    zones = _zone_names()
    if name not in zones:
        raise BadTime(f"unknown time zone {name!r}; similar names: {most_similar_names(name, zones)}")
    return ZoneInfo(name)


def local_zone() -> ZoneInfo:
    """Return the zone that the variable TZ names, else the zone of /etc/localtime, else UTC."""
    name = os.environ.get("TZ", "").removeprefix(":") or os.path.realpath(LOCALTIME).partition("/zoneinfo/")[2]
    return ZoneInfo(name if name in _zone_names() else "UTC")


@cache
def _zone_names() -> set[str]:
    """Return the names of all zones; cached, because finding them takes about 20 ms."""
    return available_timezones()


def length_in_words(length: timedelta) -> str:
    """Return a length in the format of parse_length: 168h, 2h50m, 45m."""
    hours, minutes = divmod(length // MINUTE, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes or not hours else "")


def start_in_words(start: datetime, now: datetime) -> str:
    """Return how long it is until ``start``: 'starts in 2h50m'."""
    return f"starts in {length_in_words(start - now)}" if now < start else "is about to start"


def time_in_words(moment: datetime, zone: ZoneInfo) -> str:
    """Return a time in UTC and in ``zone``, with the local date if it differs."""
    local_time, utc = moment.astimezone(zone), moment.astimezone(UTC)
    date = f"{local_time:%Y-%m-%d} " if local_time.date() != utc.date() else ""
    local = "" if zone.key.endswith("UTC") else f" ({date}{local_time:%H:%M} {zone.key})"
    return f"{utc:%Y-%m-%d %H:%M} UTC{local}"


def window_length(hours: DailyWindow) -> timedelta:
    """Return the length of the daily window ``hours`` on a day without a clock change."""
    return ((hours.end_minute - hours.begin_minute - 1) % DAY_MINUTES + 1) * MINUTE


def lies_within(hours: DailyWindow, start: datetime, length: timedelta) -> bool:
    """Return whether a time slot lies in the daily window ``hours``; length: whole minutes, at most window_length."""
    if _utc_offset(start, hours.zone) == _utc_offset(start + length - MINUTE, hours.zone):
        return _time_since_begin(hours, start) + length <= window_length(hours)
    return all(
        _time_since_begin(hours, start + passed * MINUTE) < window_length(hours) for passed in range(length // MINUTE)
    )


def _time_since_begin(hours: DailyWindow, moment: datetime) -> timedelta:
    """Return how long ago the daily window ``hours`` last began, by the local clock."""
    local = moment.astimezone(hours.zone)
    return (local.hour * 60 + local.minute - hours.begin_minute) % DAY_MINUTES * MINUTE


def _utc_offset(moment: datetime, zone: ZoneInfo) -> timedelta | None:
    return moment.astimezone(zone).utcoffset()


def _time_examples() -> str:
    return f"{_date_of_tomorrow()}T14:00Z, '{_date_of_tomorrow()} 16:00 Europe/Helsinki'"


def _date_of_tomorrow() -> str:
    """Return tomorrow's date, for the examples in messages."""
    return f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%d}"


def _parse_iso(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _convert_to_utc(moment: datetime, text: str) -> datetime:
    if moment.year not in YEARS:
        raise BadTime(f"time {text!r} has the year {moment.year}; allowed: the years {YEARS[0]} to {YEARS[-1]}")
    if moment.utcoffset() != moment.replace(fold=1).utcoffset():
        raise BadTime(
            f"time {text!r}: a clock change skips or repeats it; "
            f"allowed: a time in UTC or with an offset, such as {_date_of_tomorrow()}T14:00Z"
        )
    utc = moment.astimezone(UTC)
    if utc.second or utc.microsecond:
        raise BadTime(f"time {text!r} has seconds; allowed: whole minutes, such as {_date_of_tomorrow()}T14:00Z")
    return utc


def _minutes_of_day(hour: str, minute: str | None) -> int:
    """Return minutes after midnight, or -1 for minutes above 59."""
    return int(hour) * 60 + int(minute or 0) if int(minute or 0) < 60 else -1
