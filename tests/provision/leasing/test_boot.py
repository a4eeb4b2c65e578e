"""Boot volumes. The site is a fake whose volumes go through the states that a test gives."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from provision.availability.times import parse_time
from provision.errors import BootFailed, RequestRejected
from provision.leasing.boot import bring_up
from provision.leasing.journal import Journal
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import LeaseRequest, LeaseTask
from provision.models import Lease, Requirements, Volume
from provision.ssh.login import KeyPair
from tests.support.leasing.fake_site import FakeClock, FakeSite

START = parse_time("2026-11-21T12:00Z")
TAG = "llm-testbed-000000000000"


@dataclass
class FakeVolumeSite(FakeSite):
    """A site with boot volumes. A volume goes through ``states`` and stays in the last one; no server boots."""

    states: list[str] = field(default_factory=list)
    created: list[Volume] = field(default_factory=list)
    booted_from: str = ""

    def volumes(self):
        self.created = [replace(one, status=self.states[0]) for one in self.created]
        self.states = self.states[1:] or self.states
        return self.created

    def create_volume(self, name, tag, image_id):
        self.created.append(Volume("volume-1", name, "creating", tag))
        return self.created[-1]

    def delete_volume(self, volume):
        self.created.remove(volume)

    def create_server(self, name, tag, resource, source):
        self.booted_from = source
        raise RequestRejected("nova rejects the request")


@pytest.fixture
def boot(tmp_path):
    def run(site):
        reconciler = Reconciler(Journal(tmp_path), FakeClock(), lambda line: None)
        lease_request = LeaseRequest(
            "llm_cc", "node", Requirements(timedelta(hours=3)), KeyPair(Path("id"), "ssh-ed25519 AAAA")
        )
        active_lease = replace(reconciler.journal.open_lease("llm_cc", site.name), tag=TAG)
        lease = Lease("1", "llm_cc", "ACTIVE", START, START + timedelta(hours=3), ("r",))
        bring_up(LeaseTask(site, reconciler, lease_request, active_lease), lease)

    return run


def test_a_server_boots_from_its_volume_once_it_has_the_image(boot):
    site = FakeVolumeSite(states=["creating", "downloading", "available"])
    with pytest.raises(RequestRejected):
        boot(site)
    assert (site.booted_from, site.created[0].status) == ("volume-1", "available")


@pytest.mark.parametrize("states", [["creating", "error"], ["downloading"]])
def test_a_volume_whose_image_is_never_copied_is_reported_and_deleted(boot, states):
    site = FakeVolumeSite(states=states)
    with pytest.raises(BootFailed, match="volume node was not created from image image; the site's status"):
        boot(site)
    assert (site.booted_from, site.created) == ("", [])
