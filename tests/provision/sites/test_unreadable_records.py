"""Invalid records of other users are skipped; invalid records of this program are not. The clients are fakes."""

from types import SimpleNamespace
from typing import Any

import pytest

from provision.errors import Unreachable
from provision.sites.bare_metal import BareMetal
from provision.sites.kvm import Kvm

TAG = "llm-testbed-000000000000"
GOOD: dict[str, Any] = {
    "id": "1",
    "name": "llm_cc",
    "status": "ACTIVE",
    "user_id": "me",
    "start_date": "2026-11-21T12:00:00.000000",
    "end_date": "2026-11-21T15:00:00.000000",
    "created_at": "2026-11-21 11:59:00",
    "reservations": [{"id": "r", "resource_type": "physical:host", "hypervisor_properties": f'["!=", "$x", "{TAG}"]'}],
}
STRANGE: dict[str, Any] = {
    "no reservations": {"reservations": []},
    "no list of reservations": {"reservations": None},
    "a reservation without an id": {"reservations": [{"resource_type": "network"}]},
    "no end": {"end_date": None},
    "an end that is not a time": {"end_date": "never"},
}


def service_listing(*records):
    return SimpleNamespace(list=lambda *_: list(records))


def site_of(kind, *leases, hosts=(), **clients):
    site = kind.__new__(kind)
    site.name, site._logged_faults, site.user_id = "CHI@UC", set(), lambda: "me"
    site.blazar = SimpleNamespace(
        lease=service_listing(*leases), allocation=service_listing(*hosts), host=service_listing()
    )
    site.sdk = SimpleNamespace(**clients)
    return site


@pytest.mark.parametrize("kind", [BareMetal, Kvm])
@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("owner", ["classmate", "me"])
def test_an_invalid_lease_of_another_user_is_skipped_and_reported_once(kind, strange, owner, caplog):
    theirs = {**GOOD, "id": "2", "name": "by-hand", "user_id": owner, "reservations": [], **STRANGE[strange]}
    site = site_of(kind, theirs, GOOD)
    for _ in range(2):
        assert [lease.name for lease in site.leases()] == ["llm_cc"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "blazar: by-hand cannot be read" in line
    assert "somebody else's" in line


@pytest.mark.parametrize(
    "more", [{"status": "CREATING", "reservations": []}, {"end_date": None}, {"reservations": None}]
)
def test_an_invalid_lease_of_this_program_is_never_skipped(more):
    ours = {**GOOD, "name": f"llm_cc {TAG}", **more}
    with pytest.raises(Unreachable, match="the site may still be creating it"):
        site_of(BareMetal, ours).leases()
    assert site_of(BareMetal, {**ours, "user_id": "classmate"}).leases() == []


def test_an_unreadable_reservation_of_a_flavor_does_not_hide_other_reservations(caplog):
    flavor = {"id": "a", "resource_type": "flavor:instance", "resource_properties": '{"name": "g1"}', "amount": 2}
    strange = {**GOOD, "user_id": "x", "reservations": [{**flavor, "id": "b", "resource_properties": ""}]}
    site = site_of(Kvm, strange, {**GOOD, "reservations": [flavor]}, hosts=[{"resource_id": "1", "reservations": []}])
    assert site._reserved_flavors() == {"a": ("g1", 2)}
    assert "cannot be read" in caplog.text


def test_an_unreadable_allocation_does_not_hide_other_allocations():
    booked = {"id": "r", **{name: GOOD[name] for name in ("start_date", "end_date")}}
    hosts = [{"resource_id": "1"}, {"resource_id": "2", "reservations": [{**booked, "end_date": ""}, booked]}]
    assert [one.host_id for one in site_of(BareMetal, hosts=hosts).bookings()] == ["2"]


def test_an_unreadable_server_or_address_does_not_hide_others():
    server = {"fault": None, "image": None, "metadata": None, "user_id": "x", "task_state": None}
    servers = [SimpleNamespace(id="1"), SimpleNamespace(id="2", name="node", status="ACTIVE", **server)]
    ip = {"floating_ip_address": "192.0.2.1", "port_id": None, "description": None}
    network = SimpleNamespace(ports=list, ips=lambda **_: [SimpleNamespace(id="1"), SimpleNamespace(id="2", **ip)])
    site = site_of(BareMetal, compute=SimpleNamespace(servers=lambda: servers), network=network)
    site.session = SimpleNamespace(get_project_id=lambda: "p1")
    assert [one.id for one in site.servers()] == ["2"]
    assert [one.id for one in site.addresses()] == ["2"]
