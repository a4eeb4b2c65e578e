"""The targets of runs that belong to names of sites."""

import pytest

from experiments.runners.targets import leases_hint, target_named
from provision.errors import UnknownSite
from provision.leasing.journal import Journal
from tests.support.leasing.fake_site import IDENTITY


def test_the_error_for_an_unknown_site_lists_the_known_sites():
    with pytest.raises(UnknownSite, match="unknown site 'moon'; allowed: local, slurm, chameleon, kvm"):
        target_named("moon", None, None)


def test_a_run_on_this_machine_names_the_active_leases_that_it_does_not_use(tmp_path):
    journal = Journal(tmp_path)
    assert leases_hint("local", journal) == ""
    journal.open_lease("llm_c", "CHI@UC", IDENTITY)
    assert leases_hint("local", journal) == (
        "this machine runs the rows; a lease is active: llm_c at CHI@UC; to run there: --site CHI@UC"
    )
    assert leases_hint("chameleon", journal) == ""
