"""Profiles of clusters."""

import pytest

from experiments.errors import InputError
from experiments.runners.admission import too_small_reason
from experiments.runners.slurm.profile import CLUSTERS, Profile, profile_named
from experiments.suites.suite import cards_of_suites


@pytest.mark.parametrize("name", sorted(file.stem for file in CLUSTERS.glob("*.yaml")))
def test_every_built_in_profile_is_valid_and_its_gpus_can_run_the_rows_of_a_card(name):
    profile = profile_named(name)
    assert profile.name == name
    assert not all(too_small_reason(profile.node.gpus[0], card) for card in cards_of_suites())


def test_the_error_for_an_unknown_profile_or_key_names_what_is_allowed(tmp_path):
    with pytest.raises(
        InputError, match="--profile: unknown profile 'puthi'; allowed: lumi, mahti, puhti, roihu, a YAML file"
    ):
        profile_named("puthi")
    (tmp_path / "own.yaml").write_text("name: own\ntitle: Own\ncpus_per_node: 8\nmemory_per_node_gib: 8\npolls: 3\n")
    with pytest.raises(InputError, match=r"own\.yaml: unknown key 'polls'; allowed: account, apptainer, cpu_partition"):
        profile_named(str(tmp_path / "own.yaml"))


def test_the_node_of_a_profile_has_the_gpus_that_the_profile_states():
    profile = Profile(name="x", title="X", cpus_per_node=8, memory_per_node_gib=32, gpu="NVIDIA T4", gpus_per_node=2)
    assert [(gpu.index, gpu.name) for gpu in profile.node.gpus] == [(0, "NVIDIA T4"), (1, "NVIDIA T4")]
    assert profile.node.description == "X: 8 cores, 32 GiB of memory, 2 x NVIDIA T4 a node"


def test_a_profile_without_gpus_describes_nodes_with_processors_only():
    node = Profile(name="x", title="X", cpus_per_node=8, memory_per_node_gib=32.4, processor="EPYC").node
    assert (node.gpus, node.cpus, node.host_memory_gib, node.processor) == ((), 8, 32.4, "EPYC")
    assert node.description == "X: 8 cores, 32 GiB of memory, no GPU a node"


def test_a_profile_is_read_from_a_yaml_file_with_defaults_for_missing_keys(tmp_path):
    for name in ("own.yaml", "own.yml"):
        (tmp_path / name).write_text("name: own\ntitle: Own\ncpus_per_node: 8\nmemory_per_node_gib: 8\n")
        profile = profile_named(str(tmp_path / name))
        assert (profile.name, profile.nodes, profile.poll_s) == ("own", 1, 60.0)
        assert (profile.gpus_per_node, profile.gpu_memory_gib, profile.needs_account) == (0, 0.0, False)
        assert profile.shared_folder


@pytest.mark.parametrize(
    ("line", "key", "value"), [("way: docker", "runtime", "docker"), ("shared: false", "shared_folder", False)]
)
def test_a_key_under_its_earlier_name_is_still_read(tmp_path, line, key, value):
    (tmp_path / "own.yaml").write_text(f"name: own\ntitle: Own\ncpus_per_node: 8\nmemory_per_node_gib: 8\n{line}\n")
    assert getattr(profile_named(str(tmp_path / "own.yaml")), key) == value
