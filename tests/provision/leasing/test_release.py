"""Extending by the site's rules and never twice, release, cost; the site is a stub with one lease."""

from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from provision.errors import BadTime, ExtensionRefused, NotReleased
from provision.leasing.journal import Journal, Operation
from provision.leasing.reconciler import Reconciler
from provision.leasing.release import extend, extension, release, state
from provision.leasing.request import lease_data
from provision.models import Host, Lease, Volume
from tests.support.fake_site import HOUR, NOW, FakeClock

NAME = "llm_cc"


@dataclass
class Site:
    """Stands for a testbed: a lease of the mark, and hosts of 8 SU an hour."""

    tag: str
    lease: Lease = field(init=False)
    refuses: bool = False
    stuck: tuple[Volume, ...] = ()
    name = "CHI@UC"

    def __post_init__(self):
        self.lease = Lease("1", NAME, "ACTIVE", NOW - HOUR, NOW + 2 * HOUR, (), ("7",), self.tag)

    def user_id(self):
        return "me"

    def leases(self):
        return [self.lease] if self.lease else []

    def delete_lease(self, lease):
        self.lease = None

    def volumes(self):
        return self.stuck

    def delete_volume(self, volume):
        """Says that it does, as cinder may."""

    delete_server = release_address = delete_key = close_ssh = delete_volume

    def servers(self):
        return []

    addresses = keys = openings = servers

    def hosts(self):
        return [Host("7", "P3-GPU-007", self.name, "gpu", gpus=4, su_per_hour=8)]

    def extend_lease(self, lease, slot):
        if self.refuses:
            raise ExtensionRefused("blazar refuses")
        self.lease = replace(lease, end=slot.end)
        return self.lease


@pytest.fixture
def reconciler(tmp_path):
    return Reconciler(Journal(tmp_path, lambda: NOW), FakeClock(), lambda line: None)


@pytest.fixture
def active_lease(reconciler):
    return reconciler.journal.open(NAME, "CHI@UC")


@pytest.fixture
def site(active_lease):
    return Site(active_lease.tag)


class Killed(Exception):
    """Stands for the end of the program."""


def struck(reconciler, site, active_lease, event, by=HOUR):
    """An extension whose program ends instead of writing that event."""

    class Deadly(Journal):
        def write(self, what, *args, **data):
            super().write(what, *args, **data) if what != event else self.die()

        def die(self):
            raise Killed

    with pytest.raises(Killed):
        extend(site, replace(reconciler, journal=Deadly(reconciler.journal.folder)), active_lease, by)


def test_an_extension_that_was_killed_after_it_was_made_is_not_made_again(reconciler, site, active_lease):
    end = site.lease.end + HOUR
    struck(reconciler, site, active_lease, "done")
    assert site.lease.end == end
    assert extend(site, reconciler, active_lease, HOUR).end == end
    assert extend(site, reconciler, active_lease, HOUR).end == end + HOUR


def test_an_extension_that_was_killed_before_it_was_made_is_made(reconciler, site, active_lease, monkeypatch):
    end = site.lease.end + HOUR
    with monkeypatch.context() as patch:
        patch.setattr(site, "extend_lease", lambda *_: (_ for _ in ()).throw(Killed), raising=False)
        with pytest.raises(Killed):
            extend(site, reconciler, active_lease, HOUR)
    assert extend(site, reconciler, active_lease, HOUR).end == end


def test_one_that_was_made_is_gone_on_with_where_a_new_one_would_be_refused(reconciler, site, active_lease):
    week = timedelta(days=7)
    struck(reconciler, site, active_lease, "done", by=week)
    assert extend(site, reconciler, active_lease, week).end == NOW + 2 * HOUR + week


def test_an_extension_by_another_length_or_after_a_refusal_is_one_of_its_own(reconciler, site, active_lease):
    struck(reconciler, site, active_lease, "done")
    assert extend(site, reconciler, active_lease, 2 * HOUR).end == NOW + 5 * HOUR
    site.refuses = True
    with pytest.raises(ExtensionRefused, match="blazar refuses"):
        extend(site, reconciler, active_lease, HOUR)
    site.refuses = False
    site.lease = replace(site.lease, end=NOW + 4 * HOUR)
    assert extend(site, reconciler, active_lease, HOUR).end == NOW + 5 * HOUR


@pytest.mark.parametrize("ask", [extend, extension])
def test_a_lease_is_extended_in_its_last_48_hours_only(reconciler, site, active_lease, ask):
    site.lease = replace(site.lease, end=NOW + timedelta(hours=48, minutes=1))
    with pytest.raises(ExtensionRefused, match=r"can be extended from 2026-11-21 12:01 UTC"):
        ask(site, reconciler, active_lease, HOUR)
    assert site.lease.end == NOW + timedelta(hours=48, minutes=1)
    reconciler.clock.sleep(60)
    ask(site, reconciler, active_lease, HOUR)


@pytest.mark.parametrize("by", [timedelta(), timedelta(days=7, minutes=1)])
def test_a_lease_is_extended_by_at_most_a_week(reconciler, site, active_lease, by):
    with pytest.raises(BadTime, match=r"extension by (0m|168h1m): allowed: more than nothing, at most 168h"):
        extension(site, reconciler, active_lease, by)


def test_a_lease_that_is_over_is_not_extended(reconciler, site, active_lease):
    site.lease = replace(site.lease, status="TERMINATED")
    with pytest.raises(ExtensionRefused, match="llm_cc is over; lease anew"):
        extend(site, reconciler, active_lease, HOUR)


def test_a_lease_costs_from_its_start_until_now_at_most_until_its_end(reconciler, site, active_lease):
    assert state(site, reconciler, active_lease).used_su == 8
    site.lease = replace(site.lease, hosts=("7", "7"))
    assert state(site, reconciler, active_lease).used_su == 16
    reconciler.clock.sleep(5 * 3600)
    assert state(site, reconciler, active_lease).used_su == 2 * 8 * 3


def test_a_lease_that_is_over_costs_what_its_hosts_in_the_ledger_do(reconciler, site, active_lease):
    reconciler.journal.write("done", active_lease, Operation.CREATE_LEASE, **lease_data(site.lease))
    site.lease = replace(site.lease, status="TERMINATED", hosts=(), end=NOW)
    reconciler.journal.write("done", active_lease, Operation.CREATE_LEASE, **lease_data(site.lease))
    assert state(site, reconciler, active_lease).used_su == 8


def test_what_a_lease_costs_is_not_known_where_its_hosts_or_their_price_are_not(reconciler, site, active_lease):
    site.lease = replace(site.lease, hosts=())
    assert state(site, reconciler, active_lease).used_su is None
    site.lease = replace(site.lease, hosts=("8",))
    assert state(site, reconciler, active_lease).used_su is None


def test_a_volume_that_stays_is_told_and_the_page_kept_open(reconciler, site, active_lease):
    site.stuck = (
        Volume("volume-1", "node", "error_deleting", active_lease.tag),
        Volume("volume-2", "theirs", "in-use"),
    )
    with pytest.raises(NotReleased, match=r"still at CHI@UC after release: volume volume-1; release again"):
        release(site, reconciler, active_lease)
    assert NAME in reconciler.journal.active_leases()
    site.stuck = site.stuck[1:]
    release(site, reconciler, active_lease)
    assert reconciler.journal.active_leases() == {}
