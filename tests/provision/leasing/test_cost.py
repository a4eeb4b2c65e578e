"""A command that ends reports, from the journal, what still costs; a release continues after a failed deletion."""

from dataclasses import replace

import pytest

from provision.errors import BootFailed, NotReleased, RequestRejected, Unreachable
from provision.leasing.cost import (
    cost_in_words,
    cost_su,
    elapsed_lease_time,
    leased_hosts,
    report_cost_on_exit,
    running_cost,
)
from provision.leasing.journal import Operation
from provision.leasing.lease import lease
from provision.leasing.release import extend, release, release_on_exit
from tests.support.leasing.fake_site import HOUR, FakeSite, hosts_of

pytestmark = pytest.mark.usefixtures("reachable")
LINE = (
    "lease llm_cc at CHI@UC costs 16 service units an hour until 2026-11-21 {} UTC; to end it: testbed release llm_cc"
)


def priced_site(**more):
    return FakeSite(hosts_of(2, su_per_hour=16.0), **more)


@pytest.fixture
def cost(reconciler):
    return lambda: running_cost(reconciler, reconciler.journal.active_lease("llm_cc"))


def test_a_lease_costs_until_its_end_and_may_cost_after_it_if_somebody_extended_it(reconciler, lease_request, cost):
    lease(priced_site(), reconciler, lease_request())
    assert cost() == LINE.format("15:00")
    reconciler.clock.sleep(3 * 3600)
    assert (
        "should have ended 2026-11-21 15:00 UTC; if it was extended from another computer, it costs 16 service"
        in cost()
    )


def test_an_extended_lease_costs_until_its_new_end(reconciler, lease_request, cost, monkeypatch):
    site = priced_site()
    lease(site, reconciler, lease_request())
    longer = lambda lease, slot: site.held.append(replace(site.held.pop(), end=slot.end)) or site.held[0]  # noqa: E731
    monkeypatch.setattr(site, "extend_lease", longer, raising=False)
    extend(site, reconciler, reconciler.journal.active_lease("llm_cc"), HOUR)
    assert cost() == LINE.format("16:00")


def kill_before_the_answer(reconciler, request):
    """Request a lease; the command is killed before it has the site's answer."""

    def killed(operation):
        raise KeyboardInterrupt

    site = priced_site()
    site.before = killed
    with pytest.raises(KeyboardInterrupt):
        lease(site, reconciler, request)


def test_a_lease_whose_creation_got_no_response_is_reported_as_possibly_costing(reconciler, lease_request, cost):
    kill_before_the_answer(reconciler, lease_request())
    assert "may exist; if it does, it costs 16 service units an hour" in cost()


def test_a_rejected_lease_does_not_cost(reconciler, lease_request, cost):
    def rejected(operation):
        raise RequestRejected("blazar: no")

    site = priced_site()
    site.before = rejected
    with pytest.raises(RequestRejected):
        lease(site, reconciler, lease_request())
    assert cost() == ""


def test_a_failed_boot_reports_the_continuing_cost(reconciler, lease_request, messages):
    site = priced_site(broken={"1", "2"})
    with pytest.raises(BootFailed), report_cost_on_exit(reconciler, "llm_cc"):
        lease(site, reconciler, lease_request())
    assert messages[-1] == LINE.format("15:00")


def test_the_cost_of_a_lease_that_moved_to_another_node_is_reported_once(reconciler, lease_request, cost):
    site = priced_site(broken={"1"})
    lease(site, reconciler, lease_request())
    assert cost() == LINE.format("15:00")


def test_a_released_lease_reports_no_cost(reconciler, lease_request, messages):
    site = priced_site()
    with report_cost_on_exit(reconciler, "llm_cc"), release_on_exit(site, reconciler, "llm_cc"):
        lease(site, reconciler, lease_request())
    assert messages[-1] == "llm_cc is released; nothing is left at CHI@UC"


KINDS = ["lease", "server", "address", "key"]


@pytest.mark.parametrize("problem", [RequestRejected("in use"), Unreachable("fail_to_list")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_deletion_does_not_stop_the_other_deletions(reconciler, lease_request, cost, kind, problem):
    site = priced_site()
    lease(site, reconciler, lease_request())

    def fail_some_operations(operation):
        if operation in (f"delete {kind}", f"release {kind}"):
            raise problem

    site.before = fail_some_operations
    with pytest.raises(
        NotReleased, match=rf"still at CHI@UC after release: {kind} .* \({problem}\); run the release again"
    ):
        release(site, reconciler, reconciler.journal.active_lease("llm_cc"))
    assert len(site.remaining_resources()) == 1
    listed = [entry.data["id"] for entry in reconciler.journal.entries() if entry.data.get("reason") == "still listed"]
    assert listed == [one.id for one in site.held]
    assert cost() == (LINE.format("15:00") if kind == "lease" else "")
    site.before = lambda operation: None
    release(site, reconciler, reconciler.journal.active_lease("llm_cc"))
    assert site.remaining_resources() == []


def test_a_release_deletes_the_lease_before_its_resources(reconciler, lease_request):
    site = priced_site()
    order: list[str] = []
    lease(site, reconciler, lease_request())
    site.before = order.append
    release(site, reconciler, reconciler.journal.active_lease("llm_cc"))
    assert order == ["delete lease", "delete server", "release address", "delete key"]


def test_a_resource_that_other_resources_use_is_deleted_after_them(reconciler, lease_request, messages):
    site = priced_site()
    lease(site, reconciler, lease_request())

    def fail_some_operations(operation):
        if operation == "release address" and site.uploaded:
            raise RequestRejected("neutron: in use")

    site.before = fail_some_operations
    release(site, reconciler, reconciler.journal.active_lease("llm_cc"))
    assert site.remaining_resources() == []
    assert "neutron: in use; releasing the other resources first" in messages


def test_a_server_that_cannot_be_deleted_does_not_stop_the_other_deletions(reconciler, lease_request):
    site = priced_site()
    lease(site, reconciler, lease_request(host_count=2))
    first, delete = site.booted[0].id, site.delete_server

    def delete_server(server):
        if server.id == first:
            raise RequestRejected("nova: locked")
        delete(server)

    site.delete_server = delete_server
    with pytest.raises(NotReleased, match="nova: locked"):
        release(site, reconciler, reconciler.journal.active_lease("llm_cc"))
    assert [server.id for server in site.booted] == [first]


@pytest.mark.parametrize("listing", ["servers", "addresses", "keys"])
def test_a_lease_is_deleted_although_another_service_is_down(reconciler, lease_request, listing):
    site = priced_site()
    lease(site, reconciler, lease_request())

    def fail_to_list():
        raise Unreachable("neutron does not answer")

    setattr(site, listing, fail_to_list)
    with pytest.raises(NotReleased, match=r"not known \(neutron does not answer\)"):
        release(site, reconciler, reconciler.journal.active_lease("llm_cc"))
    assert site.held == []
    assert reconciler.journal.active_lease("llm_cc")


def test_a_lease_that_has_not_begun_has_cost_nothing(reconciler, lease_request):
    site = priced_site()
    made = lease(site, reconciler, lease_request()).lease
    assert elapsed_lease_time(reconciler, replace(made, start=made.start + HOUR)) == 0 * HOUR
    reconciler.clock.sleep(10 * 3600)
    assert elapsed_lease_time(reconciler, made) == made.end - made.start


def test_the_cost_of_a_lease_is_unknown_if_its_price_is_unknown_or_the_site_does_not_answer(reconciler, lease_request):
    site = priced_site()
    made = lease(site, reconciler, lease_request()).lease
    active_lease = reconciler.journal.active_lease("llm_cc")
    reconciler.clock.sleep(5400)
    assert cost_in_words(site, reconciler, active_lease) == "24.0 service units"
    site.machines = hosts_of(2)
    assert cost_in_words(site, reconciler, active_lease) == "unknown"
    site.machines = []
    assert leased_hosts(reconciler, site, replace(made, hosts=())) == (None,)
    site.held = []
    assert cost_in_words(site, reconciler, active_lease) == "unknown"

    def fail_to_list():
        raise Unreachable("blazar does not answer")

    site.leases = fail_to_list
    before = reconciler.clock.now()
    assert cost_in_words(site, reconciler, active_lease) == "unknown"
    assert reconciler.clock.now() == before


def test_the_cost_is_the_sum_over_the_hosts_if_every_price_is_known():
    two, free = hosts_of(2, su_per_hour=16.0), hosts_of(1, su_per_hour=0.0)
    assert cost_su(two, 3 * HOUR) == 96
    assert cost_su(free, 3 * HOUR) == 0
    for hosts in ([], [two[0], None], [two[0], *hosts_of(1)]):
        assert cost_su(hosts, 3 * HOUR) is None


def test_the_price_of_a_lease_is_that_of_the_last_request_under_its_name(reconciler, lease_request, cost):
    lease(priced_site(), reconciler, lease_request())
    active_lease, (slot,) = reconciler.journal.active_lease("llm_cc"), requested_slots(reconciler)
    dearer = {**slot, "cost_su": 2 * slot["cost_su"]}
    reconciler.journal.write("intent", active_lease, Operation.CREATE_LEASE, **dearer)
    assert "costs 32 service units an hour" in cost()


def requested_slots(reconciler):
    return [
        entry.data
        for entry in reconciler.journal.entries()
        if (entry.event, entry.operation) == ("intent", Operation.CREATE_LEASE)
    ]


def test_a_lease_of_unknown_price_is_reported_to_cost_service_units_without_a_number(reconciler, lease_request, cost):
    lease(FakeSite(), reconciler, lease_request())
    assert cost() == LINE.format("15:00").replace("16 service units an hour", "service units")


def test_a_lease_whose_creation_got_no_response_may_have_been_extended_beyond_its_end(reconciler, lease_request, cost):
    kill_before_the_answer(reconciler, lease_request())
    reconciler.clock.sleep(3 * 3600 - 1)
    assert "may exist" in cost()
    reconciler.clock.sleep(1)
    assert "should have ended 2026-11-21 15:00 UTC" in cost()


def test_a_command_that_created_no_lease_reports_no_cost_at_its_end(reconciler, messages):
    with report_cost_on_exit(reconciler, "llm_cc"):
        pass
    reconciler.journal.open_lease("llm_cc", "CHI@UC")
    with report_cost_on_exit(reconciler, "llm_cc"):
        pass
    assert messages == []
