"""Choosing among several sites; these are stubs with calendars and nothing else."""

from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from provision.errors import NoCredentials, NoSuchHost, NotEnough, Refused, Unreachable
from provision.leasing.reserve import choose_among, site_of_earliest
from provision.models import Booking, Host, Requirements
from tests.support.fake_site import HOUR, NOW

AWAY = Unreachable("blazar does not answer")


@dataclass
class Site:
    """Stands for a testbed: one host, under the same id at every site."""

    name: str
    booked: list[Booking] = field(default_factory=list)
    node_type: str = "gpu"
    problem: Exception | None = None

    def hosts(self):
        if self.problem:
            raise self.problem
        return [Host("1", f"{self.name}-1", self.name, self.node_type, gpus=4)]

    def bookings(self):
        return self.booked


def taken(hours):
    return [Booking("1", NOW - HOUR, NOW + hours * HOUR)]


def test_the_earliest_slot_of_all_sites_is_chosen(reconciler):
    sites = [Site("CHI@UC", taken(9)), Site("CHI@TACC", taken(2))]
    found = choose_among(sites, reconciler, Requirements(3 * HOUR), limit=2)
    assert [slot.hosts[0].site for slot in found] == ["CHI@TACC", "CHI@TACC"]
    assert found[0].start == NOW + timedelta(hours=2, minutes=50)
    assert site_of_earliest(sites, reconciler, Requirements(3 * HOUR), at_once=False, watch=False) is sites[1]


def test_a_site_that_is_not_reached_is_said_and_left_out(reconciler, said):
    sites = [Site("CHI@UC", problem=AWAY), Site("CHI@TACC", taken(2))]
    assert choose_among(sites, reconciler, Requirements(3 * HOUR))[0].hosts[0].site == "CHI@TACC"
    assert "CHI@UC: blazar does not answer" in said


def test_where_no_site_has_a_slot_each_says_why(reconciler):
    sites = [Site("CHI@UC", taken(2)), Site("CHI@TACC", problem=AWAY)]
    with pytest.raises(NotEnough, match=r"CHI@UC: not enough nodes are free.*CHI@TACC: blazar does not answer"):
        choose_among(sites, reconciler, Requirements(3 * HOUR, start=NOW))


def test_watching_ends_at_the_site_where_a_node_becomes_free_first(reconciler, said):
    sites = [Site("CHI@UC", taken(2)), Site("CHI@TACC", taken(1))]
    assert site_of_earliest(sites, reconciler, Requirements(3 * HOUR), at_once=True, watch=True) is sites[1]
    assert reconciler.clock.now() - NOW < 2 * HOUR
    assert any("looking again" in line for line in said)


@pytest.mark.parametrize(
    ("requirements", "line"),
    [
        ({"node_type": "gpu_v10"}, "unknown node type 'gpu_v10'; nearest: gpu_v100, gpu_a100"),
        ({"gpus": 8}, "no node has at least 8 GPUs; there are: gpu_a100 at CHI@UC .*; gpu_v100 at CHI@TACC"),
        ({"count": 2}, "2 nodes alike are wanted; allowed: 1 to 1"),
    ],
)
def test_what_no_site_has_is_a_mistake_told_over_all_sites_also_to_one_who_watches(
    reconciler, said, requirements, line
):
    edge = Site("CHI@Edge", problem=Refused("the reference API knows no site CHI@Edge"))
    sites = [Site("CHI@UC", node_type="gpu_a100"), edge, Site("CHI@TACC", node_type="gpu_v100")]
    with pytest.raises(NoSuchHost, match=line):
        site_of_earliest(sites, reconciler, Requirements(3 * HOUR, **requirements), at_once=True, watch=True)
    assert said == []


def test_a_wish_that_a_site_which_is_not_reached_might_grant_is_no_mistake(reconciler):
    sites = [Site("CHI@UC", node_type="gpu_a100"), Site("CHI@TACC", problem=AWAY)]
    with pytest.raises(NotEnough, match=r"CHI@UC: unknown node type 'gpu'.*CHI@TACC: blazar does not answer"):
        choose_among(sites, reconciler, Requirements(3 * HOUR, node_type="gpu"))


def test_an_account_that_no_site_takes_is_no_reason_to_watch(reconciler):
    sites = [Site(name, problem=NoCredentials("keystone refuses them")) for name in ("CHI@UC", "CHI@TACC")]
    with pytest.raises(NoCredentials):
        site_of_earliest(sites, reconciler, Requirements(3 * HOUR), at_once=True, watch=True)
