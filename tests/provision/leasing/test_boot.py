"""What a server boots from where it is a volume; the site is a stub whose volumes become what a test says."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from provision.availability.times import parse_time
from provision.errors import BootFailed, Refused
from provision.leasing.boot import bring_up
from provision.leasing.journal import Journal
from provision.leasing.reconciler import Clock, Reconciler
from provision.leasing.request import LeaseRequest, LeaseTask
from provision.models import Lease, Requirements, TaggedResource, Volume
from provision.ssh.login import KeyPair

START = parse_time("2026-11-21T12:00Z")
MARK = "llm-testbed-000000000000"


class FakeClock(Clock):
    passed = 0.0

    def passed_s(self):
        return self.passed

    def sleep(self, seconds):
        self.passed += seconds


@dataclass
class Site:
    """Stands for a testbed; a volume has the first of ``states`` first, and the last of them for ever."""

    states: list[str]
    there: list[Volume] = field(default_factory=list)
    booted_from: str = ""
    name, opens_ssh, boots_from_volume, boot_limit_s = "KVM@TACC", False, True, 900

    def keys(self):
        return [TaggedResource("key", "key", MARK)]

    def image_id(self):
        return "the-image"

    def servers(self):
        return []

    def volumes(self):
        self.there = [replace(one, status=self.states[0]) for one in self.there]
        self.states = self.states[1:] or self.states
        return self.there

    def create_volume(self, name, tag, image_id):
        self.there.append(Volume("volume-1", name, "creating", tag))
        return self.there[-1]

    def delete_volume(self, volume):
        self.there.remove(volume)

    def create_server(self, name, tag, resource, source):
        self.booted_from = source
        raise Refused("nova refuses")


@pytest.fixture
def boot(tmp_path):
    def run(site):
        reconciler = Reconciler(Journal(tmp_path), FakeClock(), lambda line: None)
        lease_request = LeaseRequest(
            "llm_cc", "node", Requirements(timedelta(hours=3)), KeyPair(Path("id"), "ssh-ed25519 AAAA")
        )
        active_lease = replace(reconciler.journal.open("llm_cc", site.name), tag=MARK)
        lease = Lease("1", "llm_cc", "ACTIVE", START, START + timedelta(hours=3), ("r",))
        bring_up(LeaseTask(site, reconciler, lease_request, active_lease), lease)

    return run


def test_a_server_boots_from_its_volume_once_the_image_is_in_it(boot):
    site = Site(["creating", "downloading", "available"])
    with pytest.raises(Refused):
        boot(site)
    assert (site.booted_from, site.there[0].status) == ("volume-1", "available")


@pytest.mark.parametrize("states", [["creating", "error"], ["downloading"]])
def test_a_volume_that_does_not_get_its_image_is_told_and_deleted(boot, states):
    site = Site(states)
    with pytest.raises(BootFailed, match="volume node was not made of image the-image; the site says"):
        boot(site)
    assert (site.booted_from, site.there) == ("", [])
