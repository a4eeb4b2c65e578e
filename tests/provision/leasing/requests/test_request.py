"""A request in words, and how the resources of its lease are found. The site is a fake."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from provision.choices import DISK_IMAGE, VGPU_DISK_IMAGE
from provision.leasing.journal import ActiveLease, Operation
from provision.leasing.request import (
    EndWhenIdle,
    LeaseRequest,
    LeaseTask,
    address_data,
    default_image,
    deletion_reason,
    end_when_idle_data,
    end_when_idle_of,
    first_resource_with_tag,
    requirements_in_words,
    same_hardware,
    slot_data,
    slot_in_words,
)
from provision.models import Address, Host, Requirements, Server, TaggedResource, TimeSlot
from tests.support.leasing.fake_site import HOUR, NOW, FakeSite, hosts_of


def test_a_lease_starts_at_once_only_on_request(lease_request):
    made = lease_request()
    assert made.starts_now
    assert not LeaseRequest(made.name, made.server_name, made.requirements, made.key).starts_now


def test_the_names_of_several_servers_are_numbered(lease_request):
    assert lease_request().server_names == ["node"]
    assert lease_request(host_count=3).server_names == ["node-1", "node-2", "node-3"]


@pytest.mark.parametrize(
    ("node_type", "image"), [("g1.h100.vgpu", VGPU_DISK_IMAGE), ("gpu_v100", DISK_IMAGE), (None, DISK_IMAGE)]
)
def test_only_a_node_type_with_a_virtual_gpu_boots_the_vgpu_image(node_type, image):
    assert default_image(node_type) == image


@pytest.mark.parametrize(
    ("requirements", "starts_now", "words"),
    [
        (Requirements(3 * HOUR), True, "1 node with at least 1 GPU, for 3h, start: now"),
        (Requirements(HOUR, gpus=4), False, "1 node with at least 4 GPUs, for 1h, start: as early as possible"),
        (
            Requirements(HOUR, node_type="gpu_v100", host_count=2, start=NOW),
            False,
            "2 nodes gpu_v100 with at least 1 GPU, for 1h, start: 2026-11-21 12:00 UTC",
        ),
        (
            Requirements(HOUR, node_type="gpu_v100", node="P3-GPU-007"),
            True,
            "1 node P3-GPU-007 with at least 1 GPU, for 1h, start: now",
        ),
    ],
)
def test_a_request_is_described_by_its_hardware_and_time(requirements, starts_now, words):
    assert requirements_in_words(requirements, starts_now) == words


def test_a_slot_is_described_by_its_nodes_times_and_cost():
    slot = TimeSlot(tuple(hosts_of(2)), NOW, NOW + 3 * HOUR, 48.0)
    times = "2026-11-21 12:00 UTC to 2026-11-21 15:00 UTC"
    assert slot_in_words(slot) == f"node-1, node-2 (gpu at CHI@UC), {times}, 48 SU"
    assert slot_in_words(replace(slot, cost_su=None)) == f"node-1, node-2 (gpu at CHI@UC), {times}"
    assert slot_in_words(replace(slot, cost_su=0.0)).endswith(", 0 SU")
    assert slot_data(slot) == {
        "start": "2026-11-21T12:00+00:00",
        "end": "2026-11-21T15:00+00:00",
        "hosts": ["node-1", "node-2"],
        "cost_su": 48.0,
    }


def test_only_hosts_with_the_same_properties_have_the_same_hardware():
    first, second = hosts_of(2)
    assert same_hardware(first, second)
    for change in ({"gpus": 8}, {"node_type": "other"}, {"site": "CHI@TACC"}, {"su_per_hour": 2.0}):
        assert not same_hardware(first, replace(second, **change))


def test_resources_are_found_by_their_tag():
    keys = [TaggedResource(id, "key", tag) for id, tag in (("1", "theirs"), ("2", "mine"), ("3", "mine"))]
    assert first_resource_with_tag(keys, "mine") is keys[1]
    assert first_resource_with_tag(keys, "nobody's") is None
    assert first_resource_with_tag([Host("1", "a", "b", "c")], "mine") is None


def test_a_server_is_found_by_its_name_among_those_of_the_lease(reconciler, lease_request):
    site = FakeSite()
    opened = reconciler.journal.open_lease("llm_cc", site.name)
    site.booted = [
        Server(id, name, "ACTIVE", tag)
        for id, name, tag in (("1", "node", ""), ("2", "other", opened.tag), ("3", "node", opened.tag))
    ]
    task = LeaseTask(site, reconciler, lease_request(), opened)
    assert task.find_server("node").id == "3"
    assert task.find_server("nothing") is None
    assert task.active_lease == opened
    assert address_data(Address("1", "192.0.2.1", "2")) == {"id": "1", "ip": "192.0.2.1"}


def record(end_when_idle, *operations):
    """Return the record of a lease that ends itself, with the outcomes of these operations."""
    outcomes = {operation: {"id": "1"} for operation in operations}
    return ActiveLease("a", "tag", "CHI@UC", "", outcomes={**outcomes, Operation.CREATE_CREDENTIAL: end_when_idle})


@pytest.mark.parametrize(
    ("end_when_idle", "ends", "results"),
    [
        (EndWhenIdle(timedelta(minutes=30)), ", if all results are fetched", "all results were fetched"),
        (
            EndWhenIdle(HOUR, "me@host:there", Path("key")),
            "; its results are copied to me@host:there",
            "its results are at me@host:there",
        ),
    ],
)
def test_a_lease_that_ends_itself_states_where_its_results_are(end_when_idle, ends, results):
    assert end_when_idle.in_words == f"ends after {'1h' if end_when_idle.key else '30m'} without work{ends}"
    ended = record(end_when_idle_data(end_when_idle), Operation.CREATE_LEASE)
    assert end_when_idle_of(ended) == end_when_idle
    assert f"without work ({results}), or somebody deleted it" in deletion_reason(ended)
    assert deletion_reason(record(end_when_idle_data(end_when_idle))) == ""
    assert deletion_reason(record({}, Operation.CREATE_LEASE)) == ""
