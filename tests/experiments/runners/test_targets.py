"""Targets by the names of sites."""

import pytest

from experiments.runners.targets import target_named
from provision.errors import UnknownSite


def test_an_unknown_site_is_rejected_with_the_known_ones():
    with pytest.raises(UnknownSite, match="unknown site 'moon'; allowed: local, slurm, chameleon, kvm"):
        target_named("moon", None, None)
