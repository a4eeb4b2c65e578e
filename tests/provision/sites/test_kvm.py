"""When a hypervisor has enough free GPUs for a flavor. Blazar is a fake."""

import json
from types import SimpleNamespace

import pytest

from provision.models import Host
from provision.sites.kvm import Kvm, periods_above
from tests.support.leasing.calendars import at


class FakeKvm(Kvm):
    """A hypervisor with four GPUs, two flavors, and reservations: a flavor, begin and end in hours.

    The flavor is None for a reservation of another project. amount: instances of the flavor in each reservation.
    """

    def __init__(self, *reserved, amount=1):
        self.name, self.reserved, self.amount = "KVM@TACC", reserved, amount

    def hosts(self):
        return [Host(f"g{gpus}@1", f"g{gpus}@1", self.name, f"g{gpus}", gpus=gpus, is_flavor=True) for gpus in (1, 4)]

    def allocations(self):
        times = ((f"2026-11-23T{hour:02}:00:00.000000" for hour in hours) for _, *hours in self.reserved)
        return [("1", {"id": n, "start_date": begin, "end_date": end}) for n, (begin, end) in enumerate(times)]

    def _reserved_flavors(self):
        return {n: (flavor, self.amount) for n, (flavor, *_) in enumerate(self.reserved) if flavor}


def busy_periods(site, flavor):
    return [(one.start, one.end) for one in site.bookings() if one.host_id == f"{flavor}@1"]


def test_a_flavor_with_one_gpu_leaves_space_for_another_one_but_not_for_a_flavor_with_all_gpus():
    site = FakeKvm(("g1", 9, 12))
    assert busy_periods(site, "g1") == []
    assert busy_periods(site, "g4") == [(at(9), at(12))]


def test_a_flavor_is_booked_while_other_reservations_use_all_gpus():
    site = FakeKvm(("g1", 8, 12), ("g1", 8, 12), ("g1", 9, 12), ("g1", 10, 14))
    assert busy_periods(site, "g1") == [(at(10), at(12))]
    assert busy_periods(FakeKvm(("g4", 9, 12)), "g1") == [(at(9), at(12))]


def test_each_instance_of_a_reserved_flavor_takes_its_gpus():
    assert busy_periods(FakeKvm(("g1", 9, 12), amount=4), "g1") == [(at(9), at(12))]
    assert busy_periods(FakeKvm(("g1", 9, 12), amount=3), "g1") == []


def test_a_reservation_of_another_project_takes_a_whole_hypervisor():
    assert busy_periods(FakeKvm((None, 9, 12)), "g1") == [(at(9), at(12))]


@pytest.mark.parametrize(("limit", "periods"), [(0, [(1, 2), (2, 3), (3, 5)]), (1, [(2, 3)]), (3, [])])
def test_the_periods_in_which_more_than_a_limit_is_reserved_are_found(limit, periods):
    assert periods_above(limit, [(at(1), at(3), 1), (at(2), at(5), 1)]) == [(at(a), at(b)) for a, b in periods]


def test_reservations_without_a_flavor_are_skipped():
    site = Kvm.__new__(Kvm)
    properties = json.dumps({"name": "g1"})
    flavor = {"id": "a", "resource_type": "flavor:instance", "resource_properties": properties, "amount": 2}
    lease = {"reservations": [{"id": "b", "resource_type": "virtual:floatingip"}, flavor]}
    site.blazar = SimpleNamespace(lease=SimpleNamespace(list=lambda: [lease]))
    assert site.host_ids(lease, {"a": "1"}) == ("g1@1",)
    assert site._reserved_flavors() == {"a": ("g1", 2)}
