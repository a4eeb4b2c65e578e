"""Where rows run: this machine, a cluster that a profile describes, or a machine that was leased."""

from dataclasses import dataclass
from datetime import datetime

from experiments.errors import InputError
from experiments.launch.cluster import Cluster
from experiments.launch.profile import Profile, profile_named
from provision.ledger import Act, Holding, Ledger
from provision.model import Node
from provision.shell import Here, Over, Shell
from provision.site import REGIONS, TESTBEDS, site_named
from provision.sites.remote import node_over
from provision.ssh import Configured

SLURM = "slurm"
IMAGE = "llm-testbed:current"
PARTITION = "gpu"
POLL_S = 5.0
SHARE_OF_MEMORY = 0.95


@dataclass(frozen=True)
class Place:
    """What rows run on. cluster is None for this machine; ends_at: when the machine is taken away."""

    node: Node
    cluster: Cluster | None = None
    ends_at: datetime | None = None

    def close(self) -> None:
        if self.cluster:
            self.cluster.shell.close()


def place_named(site: str, profile: str | None, account: str | None, ledger: Ledger | None = None) -> Place:
    """The place that ``site`` means; a cluster's is described by ``profile``. A leased machine is asked what it is.

    InputError for a profile that cannot be read or is missing, and where nothing is leased; SiteError from a machine.
    """
    if site != SLURM and (profile or account):
        flag = "--profile" if profile else "--account"
        raise InputError(f"{flag} {profile or account}: allowed with --site {SLURM} only")
    if site == SLURM:
        return _cluster(profile, account)
    if site in TESTBEDS or site.startswith(tuple(REGIONS.values())):
        return _leased(site, ledger or Ledger())
    return Place(site_named(site).node())


def _cluster(name: str | None, account: str | None) -> Place:
    if name is None:
        raise InputError(f"--site {SLURM}: needs --profile; allowed: a name of a known cluster, or a YAML file")
    profile = profile_named(name)
    if account:
        profile = profile.model_copy(update={"account": account})
    if profile.needs_account and not profile.account:
        raise InputError(f"--profile {name}: jobs at {profile.title} need --account, the project that pays for them")
    shell: Shell = Over(Configured(profile.host)) if profile.host else Here()
    return Place(profile.node, Cluster(shell, profile))


def _leased(site: str, ledger: Ledger) -> Place:
    """The first machine of the only lease that is held at ``site``; the others are nodes of its cluster."""
    held = [one for one in ledger.holdings().values() if one.site.startswith(REGIONS.get(site, site)) and one.machines]
    if len(held) != 1:
        there = ", ".join(sorted(one.name for one in held)) or "none"
        raise InputError(f"--site {site}: needs one lease whose machines answer, there: {there}; see testbed lease")
    (holding,) = held
    shell = Over(holding.machines[0].login)
    node = node_over(shell)
    return Place(node, Cluster(shell, leased_profile(node, len(holding.machines))), _end(holding))


def leased_profile(node: Node, nodes: int = 1) -> Profile:
    """How rows are run on nodes like that one, which were set up by us."""
    return Profile(
        name="leased",
        title="a leased node",
        partition=PARTITION,
        nodes=nodes,
        gpu=node.gpus[0].name if node.gpus else None,
        gpu_memory_gib=node.gpus[0].memory_gib if node.gpus else 0.0,
        gpus_per_node=len(node.gpus),
        cpus_per_node=node.cpus,
        memory_per_node_gib=node.host_memory_gib * SHARE_OF_MEMORY,
        processor=node.processor,
        way="docker",
        environment=IMAGE,
        shared=False,
        poll_s=POLL_S,
    )


def _end(holding: Holding) -> datetime | None:
    data = holding.acts.get(Act.EXTEND_LEASE) or holding.acts.get(Act.CREATE_LEASE) or {}
    return datetime.fromisoformat(data["end"]) if "end" in data else None
