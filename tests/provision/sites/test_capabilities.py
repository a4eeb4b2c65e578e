"""Boot volumes and security groups, which only some sites have."""

import pytest

from provision.leasing.journal import Operation
from provision.leasing.resources import all_kinds
from provision.sites.bare_metal import BareMetal
from provision.sites.base import BootVolumes, SecurityGroups
from provision.sites.kvm import Kvm


@pytest.mark.parametrize(("kind", "capable"), [(BareMetal, False), (Kvm, True)])
def test_only_a_site_with_virtual_machines_has_boot_volumes_and_security_groups(kind, capable):
    site = kind.__new__(kind)
    assert isinstance(site, BootVolumes) is capable
    assert isinstance(site, SecurityGroups) is capable
    deletions = {resource_kind.deletion for resource_kind in all_kinds(site)}
    assert ({Operation.DELETE_VOLUME, Operation.CLOSE_SSH} <= deletions) is capable
