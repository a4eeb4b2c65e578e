"""Define the targets, where rows run: this machine, a cluster that a profile describes, or leased machines."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.errors import InputError
from experiments.inputs.dataset import DataSet, prepare_dataset, prepare_remote_dataset
from experiments.inputs.download import DownloadCallback
from experiments.results.run_folder import Run, RunFolder
from experiments.runners.admission import check_disk, rejection_reason
from experiments.runners.base import Runner, RunnerOptions, Target
from experiments.runners.container.image import image_name
from experiments.runners.local.runner import LocalRunner
from experiments.runners.local.sharing import shared_rows_per_gpu
from experiments.runners.plan import PlannedRow
from experiments.runners.progress import View
from experiments.runners.slurm.cluster import Cluster
from experiments.runners.slurm.profile import Profile, profile_named
from experiments.runners.slurm.runner import SlurmRunner, most_needed_rows_first
from experiments.runners.software import Software, local_software, software_of_image
from experiments.suites.choices import HUB, SYNTHETIC
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import Suite
from experiments.system.files import cache_folder
from experiments.system.packages import require_packages
from provision.availability.times import local_zone, time_in_words
from provision.choices import DEMO, LEASING_SITES, REGION_PREFIXES, ImageVariant
from provision.clock import Clock
from provision.errors import NotReached, UnknownSite
from provision.hardware import gpus, local
from provision.hardware.remote import remote_node
from provision.leasing.journal import ActiveLease, Journal
from provision.leasing.reconciler import Reconciler
from provision.leasing.release import current_end, is_leased, lease_deletion_message
from provision.models import Gpu, Host, Node
from provision.ssh.login import Login, SshConfigHost
from provision.ssh.shell import LocalShell, Shell

if TYPE_CHECKING:
    from docker import DockerClient

LOCAL, SLURM = "local", "slurm"
LEASED_TITLE, LEASED_SHARED_FOLDER = "a leased node", False
PARTITION = "gpu"
POLL_S = 0.5
REMOTE_FOLDER: str = Profile.model_fields["folder"].default
MEMORY_SHARE = 0.94
"""Share of a leased node's host memory that jobs may request; slightly less than slurm_memory_share in ansible/."""


class LocalTarget(Target):
    """The target that runs rows on this machine."""

    starts_warm = True

    def prepare_data(
        self, source: str, sha256: str | None, datasets: Collection[str], on_progress: DownloadCallback
    ) -> DataSet:
        return prepare_dataset(source, sha256, cache_folder(), datasets, on_progress)

    def check_disk(self, folder: Path, specs: Sequence[RowSpec]) -> None:
        check_disk(folder, specs)

    def rejection_reason(self, spec: RowSpec, host_memory_gib: float) -> str:
        return rejection_reason(spec, self.node, host_memory_gib)

    def connect(self, print_line: Callable[[str], None]) -> None:
        require_packages("torch", "papermill", "ipykernel")

    def software(self) -> Software | None:
        return local_software(self.node)

    def rows_per_gpu(self, run: Run, suite: Suite) -> int:
        if not run.share_gpus:
            return 1
        used_gib = gpus.used_gib([gpu.index for gpu in self.node.gpus])
        return shared_rows_per_gpu([run.spec(suite, row) for row in run.rows], suite, self.node, used_gib)

    def runner(self, folder: RunFolder, data: DataSet, view: View, options: RunnerOptions) -> Runner:
        arguments = self.node, options.host_memory_gib, view, options.worker, options.grace_s
        rows_per_gpu = self.rows_per_gpu(folder.read_run(), folder.suite())
        return LocalRunner(folder, *arguments, rows_per_gpu=rows_per_gpu, expected=options.expected)


class ContainerTarget(LocalTarget):
    """The target that runs each row on this machine, in a separate container of the project's image.

    image_variant: library versions of the image, 'current' or 'as-taught'.
    """

    starts_warm = False

    def __init__(self, node: Node, image_variant: ImageVariant) -> None:
        super().__init__(node)
        self._variant = image_variant
        self._client: DockerClient | None = None
        self._image = ""

    def rejection_reason(self, spec: RowSpec, host_memory_gib: float) -> str:
        return rejection_reason(spec, self.node, host_memory_gib, is_local=False)

    def connect(self, print_line: Callable[[str], None]) -> None:
        from experiments.runners.container import engine, image

        self._client = client = engine.connect()
        engine.remove_abandoned_containers(client)
        if self.node.gpus:
            engine.gpu_requests(client.info(), [gpu.index for gpu in self.node.gpus])
            engine.require_free_gpus(client)
        self._image = image.ensure_image(client, self._variant, print_line)

    def software(self) -> Software | None:
        return software_of_image(self._variant)

    def rows_per_gpu(self, run: Run, suite: Suite) -> int:
        return Target.rows_per_gpu(self, run, suite)

    def runner(self, folder: RunFolder, data: DataSet, view: View, options: RunnerOptions) -> Runner:
        from experiments.runners.container.runner import ContainerRunner

        assert self._client is not None
        arguments = self._client, self._image, folder, self.node, options.host_memory_gib
        return ContainerRunner(*arguments, view, options.worker, options.grace_s, expected=options.expected)


class ExpectedTarget(Target):
    """Nodes without a connection, such as nodes that will be leased. Runs for them can be prepared but not started.

    node: description of one node. shared_folder: whether the nodes share the folder of the runs. title: name of the
    nodes in messages. image: variant of the image in which rows will run; None: unknown.
    """

    def __init__(
        self, node: Node, max_nodes: int, shared_folder: bool, title: str, image: ImageVariant | None = None
    ) -> None:
        super().__init__(node)
        self.max_nodes, self.shared_folder, self.title, self.image = max_nodes, shared_folder, title, image

    def software(self) -> Software | None:
        return software_of_image(self.image) if self.image else None

    @property
    def cache(self) -> str:
        """Folder of downloads on the nodes."""
        return f"{REMOTE_FOLDER}/cache"

    def prepare_data(
        self, source: str, sha256: str | None, datasets: Collection[str], on_progress: DownloadCallback
    ) -> DataSet:
        cache = "" if source in (SYNTHETIC, HUB) else self.cache
        data = prepare_remote_dataset(source, sha256, cache, datasets)
        if data.user_path and not self.shared_folder and self.max_nodes > 1:
            raise InputError(f"--data {source}: the nodes of {self.title} share no folder; allowed: a URL")
        return data

    def check_disk(self, folder: Path, specs: Sequence[RowSpec]) -> None:
        check_disk(folder, specs, is_local=False)

    def rejection_reason(self, spec: RowSpec, host_memory_gib: float) -> str:
        return rejection_reason(spec, self.node, host_memory_gib, is_local=False, nodes=self.max_nodes)

    def runner(self, folder: RunFolder, data: DataSet, view: View, options: RunnerOptions) -> Runner:
        raise NotImplementedError(f"{self.node.description}: not connected")


class ClusterTarget(ExpectedTarget):
    """A Slurm cluster.

    ends_at: returns the end of the nodes' lease, None without a lease. is_leased: returns whether the site reports the
    nodes as leased.
    """

    has_queue = True

    def __init__(
        self,
        node: Node,
        cluster: Cluster,
        ends_at: Callable[[], datetime | None] = lambda: None,
        is_leased: Callable[[], bool] = lambda: True,
    ) -> None:
        profile = cluster.profile
        super().__init__(node, profile.nodes, profile.shared_folder, profile.title)
        self.cluster = cluster
        self.ends_at = ends_at
        self.is_leased = is_leased

    @property
    def cache(self) -> str:
        return self.cluster.cache

    def connect(self, print_line: Callable[[str], None]) -> None:
        self.cluster.connect()

    def software(self) -> Software | None:
        return self.cluster.software()

    def runner(self, folder: RunFolder, data: DataSet, view: View, options: RunnerOptions) -> Runner:
        worker, grace_s = options.worker, options.grace_s
        lease = self.ends_at, self.is_leased
        return SlurmRunner(folder, self.cluster, view, worker, grace_s, *lease, data=data, expected=options.expected)

    def in_start_order(self, rows: Sequence[PlannedRow], suite: Suite) -> Sequence[PlannedRow]:
        return most_needed_rows_first(rows, suite)

    def cancel(self, folder: RunFolder, view: View) -> list[str]:
        return SlurmRunner(folder, self.cluster, view).cancel()

    def close(self) -> None:
        self.cluster.shell.close()


def expected_node(host: Host) -> Node:
    """Return the node that a lease of ``host`` will give, as the site describes it; unknown cores and memory are 0."""
    gpus = tuple(Gpu(index, host.gpu_model, host.gpu_memory_gib, "") for index in range(host.gpus))
    return Node(f"a node {host.node_type} at {host.site}", gpus, 0, 0.0, "")


def expected_target(node: Node, nodes: int, image: ImageVariant = "current") -> Target:
    """Return the target of ``nodes`` future leased nodes like ``node``. image: image variant in which rows will run."""
    return ExpectedTarget(node, nodes, LEASED_SHARED_FOLDER, LEASED_TITLE, image)


def target_named(
    site: str,
    profile: str | None,
    account: str | None,
    journal: Journal | None = None,
    image_variant: ImageVariant = "current",
    in_container: bool = False,
) -> Target:
    """Return the target at ``site``.

    profile, account: for site slurm only, the cluster's profile and the project that is charged. journal: records of
    the active leases; None: the user's journal. image_variant: variant of the image in which rows run, on a leased
    machine or with ``in_container``. in_container: whether rows run in containers on this machine. Raises InputError
    for options that are not allowed together, for a profile that is missing or cannot be read, and if there is no lease
    at the site. Raises SiteError if a leased machine does not answer.
    """
    if site != SLURM and (profile or account):
        flag = "--profile" if profile else "--account"
        raise InputError(f"{flag} {profile or account}: allowed with --site {SLURM} only")
    if in_container and site != LOCAL:
        raise InputError(f"--in-container: allowed with --site {LOCAL} only; leased machines always use the image")
    if in_container:
        return ContainerTarget(local.this_machine(), image_variant)
    if leases_machines(site):
        return _leased_target(site, journal or Journal(), image_variant)
    if image_variant != "current":
        allowed = f"on leased machines (--site {', '.join(LEASING_SITES)}), or with --in-container"
        raise InputError(f"--versions {image_variant}: allowed {allowed}")
    if site == SLURM:
        return _cluster_target(profile, account)
    if site not in (LOCAL, DEMO):
        raise UnknownSite(f"unknown site {site!r}; allowed: {', '.join((LOCAL, SLURM, *LEASING_SITES))}")
    return LocalTarget(local.this_machine())


@dataclass(frozen=True)
class MonitorTarget:
    """Connections for monitoring: a shell for Slurm's commands, the remote folder of runs, and a shell on each node."""

    shell: Shell
    folder: str
    nodes: tuple[tuple[str, Shell], ...] = ()

    def close(self) -> None:
        for shell in (self.shell, *(node_shell for _, node_shell in self.nodes)):
            shell.close()


def monitor_target(site: str, profile: str | None, journal: Journal | None = None) -> MonitorTarget:
    """Connect to the machines at ``site`` that can be monitored: the cluster of ``profile``, or leased machines.

    journal: records of the active leases; None: the user's journal. Raises InputError if there is no lease at ``site``,
    or if ``site`` cannot be monitored, such as this machine.
    """
    if site == SLURM and profile:
        known = profile_named(profile)
        return MonitorTarget(shell_of(known), known.folder)
    if not leases_machines(site):
        raise InputError(f"--site {site}: allowed: {SLURM} with --profile, {', '.join(LEASING_SITES)}")
    machines = _only_active_lease(site, journal or Journal()).machines
    nodes = tuple((one.server, _ssh_shell(one.login)) for one in machines)
    return MonitorTarget(nodes[0][1], REMOTE_FOLDER, nodes)


def leases_machines(site: str) -> bool:
    """Return whether ``site`` is a site that leases machines."""
    return site in LEASING_SITES or site.startswith(tuple(REGION_PREFIXES.values()))


def _ssh_shell(login: Login | SshConfigHost) -> Shell:
    from provision.ssh.ssh_shell import SshShell

    return SshShell(login)


def shell_of(profile: Profile) -> Shell:
    """Return a shell on the cluster's login node, or on this machine if the profile has no host."""
    return _ssh_shell(SshConfigHost(profile.host)) if profile.host else LocalShell()


def _cluster_target(name: str | None, account: str | None) -> Target:
    if name is None:
        raise InputError(
            f"--site {SLURM}: needs --profile, the cluster"
            "; allowed: the name of a known cluster, or a YAML file that describes one"
        )
    profile = profile_named(name)
    if account:
        profile = profile.model_copy(update={"account": account})
    if profile.needs_account and not profile.account:
        raise InputError(f"--profile {name}: jobs at {profile.title} need --account, the project that is charged")
    return ClusterTarget(profile.node, Cluster(shell_of(profile), profile))


def _leased_target(site: str, journal: Journal, image_variant: ImageVariant) -> Target:
    """Return the machines of the only lease at ``site`` as a cluster. Commands run on the first machine."""
    active_lease = _only_active_lease(site, journal)
    shell = _ssh_shell(active_lease.machines[0].login)
    lease = Reconciler(journal, Clock(), lambda _: None), active_lease
    try:
        node = remote_node(shell)
    except NotReached:
        if why := lease_deletion_message(*lease):
            raise InputError(
                f"lease {active_lease.name} {why}; `testbed release {active_lease.name}` ends it"
            ) from None
        raise
    cluster = Cluster(shell, leased_profile(node, len(active_lease.machines), image_variant))
    return ClusterTarget(node, cluster, partial(current_end, *lease), partial(is_leased, *lease))


def leases_hint(site: str, journal: Journal | None = None) -> str:
    """Return a hint that leases are active, for a run on this machine; '' for other sites and without a lease."""
    active = (journal or Journal()).active_leases().values() if site == LOCAL else ()
    if not active:
        return ""
    names = ", ".join(f"{one.name} at {one.site}" for one in active)
    sites = " or ".join(dict.fromkeys(f"--site {one.site}" for one in active))
    return f"this machine runs the rows; a lease is active: {names}; to run there: {sites}"


def _only_active_lease(site: str, journal: Journal) -> ActiveLease:
    active = [one for one in journal.active_leases().values() if one.site.startswith(REGION_PREFIXES.get(site, site))]
    leases = [one for one in active if one.machines]
    if not leases:
        why = "; ".join(f"{one.name} {_unreachable_reason(one, journal)}" for one in active)
        raise InputError(
            f"--site {site}: no lease with a reachable machine; {why or 'create one with `testbed lease`'}"
        )
    if len(leases) > 1:
        names = ", ".join(sorted(one.name for one in leases))
        raise InputError(f"--site {site}: needs exactly one lease with a reachable machine; found: {names}")
    return leases[0]


def _unreachable_reason(active_lease: ActiveLease, journal: Journal) -> str:
    """Return why, according to the journal, no machine of a lease can be reached, and which command to run next."""
    start, end, now = journal.recorded_start(active_lease), journal.recorded_end(active_lease), Clock().now()
    if start is None or end is None:
        return "is not reserved yet; `testbed lease` resumes the reservation"
    if end <= now:
        return f"ended {time_in_words(end, local_zone())}; `testbed release {active_lease.name}`"
    if now < start:
        return f"is PENDING until {time_in_words(start, local_zone())}; `testbed lease` waits and boots its nodes"
    return "has started, but no node has answered; `testbed lease` boots its nodes"


def leased_profile(node: Node, nodes: int = 1, image_variant: ImageVariant = "current") -> Profile:
    """Return the profile of a Slurm cluster of leased nodes like ``node``."""
    return Profile(
        name="leased",
        title=LEASED_TITLE,
        partition=PARTITION,
        nodes=nodes,
        gpu=node.gpus[0].name if node.gpus else None,
        gpu_memory_gib=node.gpus[0].memory_gib if node.gpus else 0.0,
        gpus_per_node=len(node.gpus),
        cpus_per_node=node.cpus,
        memory_per_node_gib=node.host_memory_gib * MEMORY_SHARE,
        processor=node.processor,
        runtime="docker",
        environment=image_name(image_variant),
        shared_folder=LEASED_SHARED_FOLDER,
        dedicated=True,
        poll_s=POLL_S,
    )
