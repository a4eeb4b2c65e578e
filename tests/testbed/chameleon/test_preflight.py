"""Problems that are reported before a lease costs anything, and failed deletions, with real OpenStack services."""

import pytest
from chi import context

from provision.choices import DISK_IMAGE
from provision.errors import NotReleased, RequestRejected
from provision.leasing import release
from provision.leasing.lease import lease
from tests.testbed.chameleon.conftest import left_at

IMAGE_FIELDS = {"disk_format": "raw", "container_format": "bare", "data": b"\0" * 1024, "validate_checksum": False}


@pytest.fixture
def private_images(site):
    """Create private images by name; deleted afterwards."""
    made = []

    def create(name):
        made.append(site.sdk.image.create_image(name=name, visibility="private", **IMAGE_FIELDS))
        return made[-1]

    yield create
    for image in made:
        site.sdk.image.delete_image(image.id)


def test_of_two_images_with_the_same_name_the_public_one_is_booted(site, private_images):
    public = site.image_id(DISK_IMAGE)
    private_images(DISK_IMAGE)
    assert site.image_id(DISK_IMAGE) == public


def test_ambiguous_and_inactive_images_are_rejected_before_leasing(testbed, site, key, private_images):
    image = ("--key", str(key.file), "--image", "my-image")
    flags = ("--node-type", "gpu_a100_pcie", "--start", "now", "--yes", *image)
    first = private_images("my-image")
    assert site.image_id("my-image") == first.id
    second = private_images("my-image")
    code, _, err = testbed("lease", *flags)
    assert (code, "have the name my-image" in err, first.id in err, second.id in err) == (3, True, True, True)
    assert "delete or rename yours" in testbed("doctor", "--site", "chameleon", *image)[1]
    site.sdk.image.delete_image(second.id)
    site.sdk.image.delete_image(first.id)
    code, _, err = testbed("lease", *flags)
    assert (code, "does not exist" in err) == (3, True)
    assert left_at(site) == []
    assert testbed("status")[1] == "no active lease\n"


def test_a_missing_network_is_reported_before_leasing(site, reconciler, lease_request, monkeypatch):
    monkeypatch.setattr(context, "DEFAULT_NETWORK", "sharednet9")
    with pytest.raises(RequestRejected, match="network sharednet9 does not exist at CHI@UC"):
        lease(site, reconciler, lease_request())
    assert left_at(site) == []


def test_all_other_resources_are_deleted_if_a_security_group_is_in_use(
    connected, reconciler, lease_request, reachable, messages
):
    site = connected("kvm")
    lease(site, reconciler, lease_request(node_type=None))
    active_lease = release.get_active_lease(reconciler, "llm_cc")
    (group,) = site.security_groups()
    network = site.sdk.network.find_network("sharednet1")
    port = site.sdk.network.create_port(network_id=network.id, security_groups=[group.id])
    with pytest.raises(NotReleased, match=rf"still at KVM@TACC after release: security group {group.id} \(neutron"):
        release.release(site, reconciler, active_lease)
    assert left_at(site) == [group]
    site.sdk.network.delete_port(port.id)
    release.release(site, reconciler, active_lease)
    assert left_at(site) == []
