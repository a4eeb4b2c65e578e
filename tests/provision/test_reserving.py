"""Choosing among several sites; these are stubs with calendars and nothing else."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from provision.acting import Clock, Desk
from provision.errors import NotEnough, Unreachable
from provision.ledger import Ledger
from provision.model import Booking, Host, Wish
from provision.reserving import choose_among, site_of_earliest

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Still(Clock):
    """A clock that waiting alone moves."""

    at = NOW

    def now(self):
        return self.at

    def sleep(self, seconds):
        self.at += timedelta(seconds=seconds)


@dataclass
class Site:
    """Stands for a testbed: one host, under the same id at every site."""

    name: str
    booked: list[Booking] = field(default_factory=list)
    answers: bool = True

    def hosts(self):
        if not self.answers:
            raise Unreachable("blazar does not answer")
        return [Host("1", f"{self.name}-1", self.name, "gpu", gpus=4)]

    def bookings(self):
        return self.booked


@pytest.fixture
def said():
    return []


@pytest.fixture
def desk(said, tmp_path):
    return Desk(Ledger(tmp_path), Still(), said.append)


def taken(hours):
    return [Booking("1", NOW - HOUR, NOW + hours * HOUR)]


def test_the_earliest_slot_of_all_sites_is_chosen(desk):
    sites = [Site("CHI@UC", taken(9)), Site("CHI@TACC", taken(2))]
    found = choose_among(sites, desk, Wish(3 * HOUR), limit=2)
    assert [slot.hosts[0].site for slot in found] == ["CHI@TACC", "CHI@TACC"]
    assert found[0].start == NOW + timedelta(hours=2, minutes=50)
    assert site_of_earliest(sites, desk, Wish(3 * HOUR), at_once=False, watch=False) is sites[1]


def test_a_site_that_is_not_reached_is_said_and_left_out(desk, said):
    sites = [Site("CHI@UC", answers=False), Site("CHI@TACC", taken(2))]
    assert choose_among(sites, desk, Wish(3 * HOUR))[0].hosts[0].site == "CHI@TACC"
    assert "CHI@UC: blazar does not answer" in said


def test_where_no_site_has_a_slot_each_says_why(desk):
    sites = [Site("CHI@UC", taken(2)), Site("CHI@TACC", answers=False)]
    with pytest.raises(NotEnough, match=r"CHI@UC: not enough nodes are free.*CHI@TACC: blazar does not answer"):
        choose_among(sites, desk, Wish(3 * HOUR, start=NOW))


def test_watching_ends_at_the_site_where_a_node_becomes_free_first(desk, said):
    sites = [Site("CHI@UC", taken(2)), Site("CHI@TACC", taken(1))]
    assert site_of_earliest(sites, desk, Wish(3 * HOUR), at_once=True, watch=True) is sites[1]
    assert desk.clock.now() - NOW < 2 * HOUR
    assert any("looking again" in line for line in said)
