"""Time slots and leases as tables."""

from dataclasses import replace
from io import StringIO
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from rich.console import Console

from experiments.cli.tables.leases import lease_line, slots_table, states_table
from provision.leasing.journal import ActiveLease, Operation
from provision.leasing.release import LeaseSnapshot
from provision.leasing.request import EndWhenIdle, end_when_idle_data
from provision.models import Lease, Server, TimeSlot
from tests.support.leasing.calendars import HOUR, a100, at

NODE = a100("p3-01")
HELSINKI = ZoneInfo("Europe/Helsinki")


def rendered_lines(renderable, width=140):
    text = StringIO()
    Console(width=width, file=text).print(renderable)
    return text.getvalue().splitlines()


def test_a_slot_is_shown_in_both_zones_with_its_nodes_and_cost():
    slots = [
        TimeSlot((NODE, a100("p3-02")), at(20, 50), at(23, 50), 96.0),
        TimeSlot((NODE,), at(1), at(1) + HOUR, None),
    ]
    table = [line.split("  ") for line in rendered_lines(slots_table(slots, HELSINKI)) if line.strip()]
    header, first, second = ([cell.strip() for cell in row if cell.strip()] for row in (table[0], *table[2:]))
    assert header == ["UTC", "Europe/Helsinki", "nodes", "type", "service units"]
    assert first[:2] == ["2026-11-23 20:50 to 23:50", "2026-11-23 22:50 to 2026-11-24 01:50"]
    assert first[2:] == ["p3-01, p3-02", "gpu_a100_pcie at CHI@UC", "96.0"]
    assert second[-1] == "unknown"


LEASE = Lease("l", "llm_cc", "ACTIVE", at(12), at(15), ())
STATE = LeaseSnapshot(ActiveLease("llm_cc", "tag", "CHI@UC", ""), LEASE, (), (), (NODE,), 16.0, 48.0)


@pytest.mark.parametrize(
    ("hour", "words"), [(11, "starts in 1h"), (13, "2h left"), (16, "over")], ids=["pending", "active", "over"]
)
@pytest.mark.parametrize("width", [80, 160])
def test_a_lease_shows_how_much_of_its_time_is_left(hour, words, width, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    text = "\n".join(rendered_lines(states_table([STATE], at(hour)), width))
    assert words in text
    for part in ("2026-11-23 12:00 UTC", "2026-11-23 15:00 UTC", "p3-01", "gpu_a100_pcie", "16.0 of 48.0 SU"):
        assert part in text


def test_a_lease_that_no_longer_exists_is_shown_as_such():
    gone = replace(STATE, lease=None, hosts=(), used_su=None, total_su=None)
    assert rendered_lines(states_table([gone], at(13)))[2].split() == ["llm_cc", "gone"]


@pytest.mark.parametrize(
    ("target", "active", "gone"),
    [
        (
            "",
            "ACTIVE, ends after 30m without work, if all results are fetched",
            "(all results were fetched), or",
        ),
        ("me@host:there", "its results are copied to me@host:there", "(its results are at me@host:there), or"),
    ],
)
def test_a_lease_that_ends_itself_is_shown_with_its_idle_time_and_its_target_for_results(target, active, gone):
    armed: dict[str, dict[str, Any]] = {
        Operation.CREATE_LEASE: {},
        Operation.CREATE_CREDENTIAL: {"id": "c", **end_when_idle_data(EndWhenIdle(HOUR / 2, target))},
    }
    state = replace(STATE, active_lease=replace(STATE.active_lease, outcomes=armed))
    assert active in " ".join(rendered_lines(states_table([state], at(13)), 300)[2].split())
    ended = replace(state, lease=None, hosts=(), used_su=None, total_su=None)
    text = " ".join(rendered_lines(states_table([ended], at(13)), 300)[2].split())
    assert f"was deleted: either it ended itself after 30m without work {gone}" in text
    assert f"without work {gone}" in lease_line(ended, at(13))


def test_a_lease_that_was_not_set_up_to_end_itself_is_shown_as_such():
    wanted: dict[str, dict[str, Any]] = {Operation.CREATE_CREDENTIAL: end_when_idle_data(EndWhenIdle(HOUR / 2))}
    state = replace(STATE, active_lease=replace(STATE.active_lease, intents=wanted))
    text = " ".join(rendered_lines(states_table([state], at(13)), 300)[2].split())
    assert "ACTIVE, does not end itself: its setup did not finish" in text


def test_servers_and_addresses_are_the_last_columns_of_the_table_of_leases(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    state = replace(STATE, servers=(Server("s", "node-llm-cc", "ACTIVE", "t"),), ips=("192.0.2.1",))
    header = rendered_lines(states_table([state], at(13)), 300)[0].split()
    assert header == ["lease", "status", "start", "end", "time", "nodes", "cost", "servers", "addresses"]
