"""Clusters as targets, without a connection."""

from types import SimpleNamespace

import pytest

from experiments.errors import InputError
from experiments.runners import targets
from experiments.runners.slurm.cluster import code_archive
from experiments.runners.targets import leased_profile, target_named
from provision.leasing.journal import Journal
from tests.support import rows as made


@pytest.mark.parametrize(
    ("site", "profile", "account", "says"),
    [
        ("slurm", None, None, "--site slurm: needs --profile"),
        ("slurm", "puhti", None, "jobs at Puhti need --account"),
        ("local", "puhti", None, "--profile puhti: allowed with --site slurm only"),
        (
            "chameleon",
            None,
            None,
            "--site chameleon: no lease with a reachable machine; create one with `testbed lease`",
        ),
    ],
)
def test_a_target_without_a_description_is_rejected_in_one_line(site, profile, account, says, tmp_path):
    with pytest.raises(InputError, match=says):
        target_named(site, profile, account, Journal(tmp_path))


def test_a_leased_node_runs_rows_in_the_image_with_all_its_gpus():
    profile = leased_profile(made.node(made.GPU, made.GPU, cpus=64), 2)
    assert (profile.runtime, profile.environment, profile.partition) == ("docker", "llm-testbed:current", "gpu")
    assert (profile.gpus_per_node, profile.cpus_per_node) == (2, 64)
    assert (profile.nodes, profile.shared) == (2, False)


def test_a_leased_node_runs_rows_in_the_image_of_the_variant(monkeypatch, tmp_path):
    """Fakes: the machine of the lease, and its hardware."""
    machine = SimpleNamespace(login=SimpleNamespace(host="192.0.2.1"))
    active_lease = SimpleNamespace(machines=(machine,), operations={})
    monkeypatch.setattr(targets, "_only_active_lease", lambda site, journal: active_lease)
    monkeypatch.setattr(targets, "node_over", lambda shell: made.node(made.GPU))
    target = target_named("chameleon", None, None, Journal(tmp_path), "as-taught")
    assert target.cluster.profile.environment == "llm-testbed:as-taught"


def test_the_archive_of_the_code_is_reproducible():
    assert code_archive() == code_archive()
