"""Where rows run: this machine, a cluster that a profile describes, or a machine that was leased."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from experiments.errors import InputError
from experiments.runners.slurm.cluster import Cluster
from experiments.runners.slurm.profile import Profile, profile_named
from provision.configure.playbook import ImageVariant
from provision.errors import SiteError
from provision.hardware.remote import node_over
from provision.leasing.journal import ActiveLease, Journal, Operation
from provision.leasing.request import OVER, find_lease
from provision.models import Node
from provision.sites.base import REGIONS, TESTBEDS, connect_to, site_named
from provision.ssh.login import SshConfigHost
from provision.ssh.shell import LocalShell, Shell
from provision.ssh.ssh_shell import SshShell

SLURM = "slurm"
PARTITION = "gpu"
POLL_S = 1.0
FOLDER: str = Profile.model_fields["folder"].default
SHARE_OF_MEMORY = 0.94
"""Of a leased node, that jobs ask for; its Slurm has slurm_memory_share (ansible/roles/slurm), rounded down."""


@dataclass(frozen=True)
class Target:
    """What rows run on. cluster is None for this machine. ends_at: when the machine is taken away; held: it was not
    yet, as far as its site can be asked.
    """

    node: Node
    cluster: Cluster | None = None
    ends_at: datetime | None = None
    held: Callable[[], bool] = lambda: True

    def close(self) -> None:
        if self.cluster:
            self.cluster.shell.close()


def target_named(
    site: str,
    profile: str | None,
    account: str | None,
    journal: Journal | None = None,
    image_variant: ImageVariant = "current",
) -> Target:
    """The place that ``site`` means; a cluster's is described by ``profile``. A leased machine is asked what it is.

    image_variant: of the image that rows run in on a leased machine.

    InputError for a profile that cannot be read or is missing, and where nothing is leased; SiteError from a machine.
    """
    if site != SLURM and (profile or account):
        flag = "--profile" if profile else "--account"
        raise InputError(f"{flag} {profile or account}: allowed with --site {SLURM} only")
    if is_testbed(site):
        return _leased(site, journal or Journal(), image_variant)
    if image_variant != "current":
        raise InputError(f"--versions {image_variant}: allowed on leased machines only (--site {', '.join(TESTBEDS)})")
    if site == SLURM:
        return _cluster(profile, account)
    return Target(site_named(site).node())


@dataclass(frozen=True)
class MonitorTarget:
    """What can be watched: the shell that Slurm's commands are given through, the folder of the runs there, and a
    shell of each node that can be logged in to."""

    shell: Shell
    folder: str
    nodes: tuple[tuple[str, Shell], ...] = ()

    def close(self) -> None:
        for shell in (self.shell, *(one for _, one in self.nodes)):
            shell.close()


def monitor_target(site: str, profile: str | None, journal: Journal | None = None) -> MonitorTarget:
    """What of ``site`` can be watched; InputError where nothing is leased there, or it is this machine."""
    if site == SLURM and profile:
        known = profile_named(profile)
        return MonitorTarget(_shell_of(known), known.folder)
    if not is_testbed(site):
        raise InputError(f"--site {site}: allowed: {SLURM} with --profile, {', '.join(TESTBEDS)}")
    machines = _only_active_lease(site, journal or Journal()).machines
    nodes = tuple((one.server, SshShell(one.login)) for one in machines)
    return MonitorTarget(nodes[0][1], FOLDER, nodes)


def is_testbed(site: str) -> bool:
    return site in TESTBEDS or site.startswith(tuple(REGIONS.values()))


def _shell_of(profile: Profile) -> Shell:
    return SshShell(SshConfigHost(profile.host)) if profile.host else LocalShell()


def _cluster(name: str | None, account: str | None) -> Target:
    if name is None:
        raise InputError(f"--site {SLURM}: needs --profile; allowed: a name of a known cluster, or a YAML file")
    profile = profile_named(name)
    if account:
        profile = profile.model_copy(update={"account": account})
    if profile.needs_account and not profile.account:
        raise InputError(f"--profile {name}: jobs at {profile.title} need --account, the project that pays for them")
    return Target(profile.node, Cluster(_shell_of(profile), profile))


def _leased(site: str, journal: Journal, image_variant: ImageVariant) -> Target:
    """The first machine of the only lease that is held at ``site``; the others are nodes of its cluster."""
    active_lease = _only_active_lease(site, journal)
    shell = SshShell(active_lease.machines[0].login)
    node = node_over(shell)
    cluster = Cluster(shell, leased_profile(node, len(active_lease.machines), image_variant))
    return Target(node, cluster, _end(active_lease), partial(_is_held, active_lease))


def _is_held(active_lease: ActiveLease) -> bool:
    try:
        lease = find_lease(connect_to(active_lease.site), active_lease)
    except SiteError:
        return True
    return lease is not None and lease.status not in OVER


def _only_active_lease(site: str, journal: Journal) -> ActiveLease:
    held = [
        one for one in journal.active_leases().values() if one.site.startswith(REGIONS.get(site, site)) and one.machines
    ]
    if len(held) != 1:
        there = ", ".join(sorted(one.name for one in held)) or "none"
        raise InputError(f"--site {site}: needs one lease whose machines answer, there: {there}; see testbed lease")
    return held[0]


def image_of(image_variant: ImageVariant) -> str:
    """The image that setting a machine up leaves there (ansible/roles/images)."""
    return f"llm-testbed:{image_variant}"


def leased_profile(node: Node, nodes: int = 1, image_variant: ImageVariant = "current") -> Profile:
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
        runtime="docker",
        environment=image_of(image_variant),
        shared=False,
        poll_s=POLL_S,
    )


def _end(active_lease: ActiveLease) -> datetime | None:
    data = (
        active_lease.operations.get(Operation.EXTEND_LEASE) or active_lease.operations.get(Operation.CREATE_LEASE) or {}
    )
    return datetime.fromisoformat(data["end"]) if "end" in data else None
