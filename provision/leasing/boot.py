"""Boot the servers of an ACTIVE lease and connect to them by SSH."""

from dataclasses import dataclass, replace
from functools import partial

from provision.errors import BadHostKey, BootFailed, LoginRejected, NoAddress, NotReached, RequestRejected
from provision.leasing.boot_faults import HOST, cause_of
from provision.leasing.journal import Machine, Operation
from provision.leasing.request import LeaseTask, address_data, first_resource_with_tag
from provision.leasing.reserve import current_lease, lease_gone_error, move_to_other_hosts
from provision.leasing.resources import delete_tagged, server_kinds
from provision.models import Address, Lease, Server, Volume
from provision.sites.base import BootVolumes, SecurityGroups, SimulatedServers
from provision.ssh.login import Login, try_login

CREATING_STATUSES = ("creating", "downloading")
"""Cinder's statuses of a volume to which the disk image is still being copied."""
SSH_LIMIT_S = 20 * 60
"""How long an ACTIVE server may take to answer SSH. Its operating system starts after the site reports ACTIVE."""
KEY_LIMIT_S = 5 * 60
"""How long a machine may reject the SSH key, which is installed only after sshd has started."""
BOOT_ATTEMPTS = 3
ADDRESS_ATTEMPTS = 3


def bring_up(task: LeaseTask, lease: Lease) -> tuple[str, tuple[Machine, ...]]:
    """Boot the request's machines and connect to them; return the disk image's UUID and the machines."""
    _prepare_access(task)
    image_id = task.reconciler.query(lambda: task.site.image_id(task.lease_request.image))
    servers = _boot_servers(task, lease, image_id)
    return image_id, tuple(_connect(task, server) for server in servers)


def _prepare_access(task: LeaseTask) -> None:
    """Upload the SSH key, and open SSH where the site has security groups."""
    site, tag = task.site, task.initial_record.tag
    task.find_or_create(
        Operation.UPLOAD_KEY,
        lambda: first_resource_with_tag(site.keys(), tag),
        lambda: site.upload_key(tag, task.lease_request.key.public),
    )
    if isinstance(site, SecurityGroups):
        groups = site
        task.find_or_create(
            Operation.OPEN_SSH,
            lambda: first_resource_with_tag([group for group in groups.security_groups() if group.complete], tag),
            lambda: groups.create_security_group(tag),
        )


def _boot_servers(task: LeaseTask, lease: Lease, image_id: str) -> list[Server]:
    """Create the request's servers and return them once all are ACTIVE; move to other hosts if a host is at fault.

    Raises BootFailed, with the site's reason, if another attempt cannot succeed, or after BOOT_ATTEMPTS attempts.
    """
    for attempt in range(1, BOOT_ATTEMPTS + 1):
        named = zip(task.lease_request.server_names, lease.reservation_ids, strict=True)
        created = [
            _create_server(task, reservation_id, name, _boot_source(task, name, image_id), image_id)
            for name, reservation_id in named
        ]
        servers = [_wait_until_active(task, lease, server) for server in created]
        failed = [number for number, server in enumerate(servers) if server.status != "ACTIVE"]
        if not failed:
            return servers
        causes = [cause_of(servers[number].fault) for number in failed]
        faults = [_discard_server(task, servers[number], lease.hosts[number : number + 1]) for number in failed]
        worst = min(causes, key=lambda cause: cause.is_retryable)
        if not worst.is_retryable:
            raise BootFailed(f"{'; '.join(faults)}; {worst.fix}")
        task.reconciler.report(f"attempt {attempt} of {BOOT_ATTEMPTS}: {'; '.join(faults)}")
        if attempt < BOOT_ATTEMPTS and HOST in causes:
            lease = move_to_other_hosts(task, lease)
    raise BootFailed(f"{'; '.join(faults)}, after {BOOT_ATTEMPTS} attempts; {causes[0].fix}")


def _discard_server(task: LeaseTask, server: Server, hosts: tuple[str, ...]) -> str:
    """Delete a server that did not boot, and return the fault in words. If the host is at fault, record this.

    hosts: a tuple with the id of the server's host; () if the site does not report the host.
    """
    failed_hosts = list(hosts) if cause_of(server.fault) is HOST else []
    task.reconciler.journal.write(
        "failed", task.initial_record, Operation.CREATE_SERVER, hosts=failed_hosts, reason=server.fault
    )
    _delete_server(task, server.name)
    names = [host.name for host in task.reconciler.query(task.site.hosts) if host.id in hosts]
    where = f" on {names[0]}" if names else ""
    return f"server {server.name} did not boot{where}; the site's reason: {server.fault}"


def _delete_server(task: LeaseTask, name: str) -> None:
    for kind in server_kinds(task.site):
        delete_tagged(task.reconciler, task.initial_record, kind, name)


def _boot_source(task: LeaseTask, name: str, image_id: str) -> str:
    """Return the id of the boot source of the server with this name: the image, or a volume with a copy of it."""
    site = task.site
    return _create_volume(task, site, name, image_id).id if isinstance(site, BootVolumes) else image_id


def _create_volume(task: LeaseTask, site: BootVolumes, name: str, image_id: str) -> Volume:
    """Create the volume of the server with this name, and return it once it contains the image.

    Raises BootFailed if the site cannot create it.
    """

    def find_volume() -> Volume | None:
        volumes = (volume for volume in site.volumes() if volume.tag == task.initial_record.tag)
        return next((volume for volume in volumes if volume.name == name), None)

    created = task.find_or_create(
        Operation.CREATE_VOLUME,
        find_volume,
        lambda: site.create_volume(name, task.initial_record.tag, image_id),
        name=name,
        image_id=image_id,
    )
    ready = task.reconciler.wait(
        f"volume {name}",
        find_volume,
        lambda now: now is None or now.status not in CREATING_STATUSES,
        task.site.boot_limit_s,
    )
    if ready is None or ready.status.startswith("error"):
        _delete_server(task, name)
        status = (ready or created).status
        raise BootFailed(
            f"volume {name} was not created from image {image_id}; the site's status: {status}; "
            "run the command again, or ask the site's help desk"
        )
    return ready


def _create_server(task: LeaseTask, reservation_id: str, name: str, source: str, image_id: str) -> Server:
    return task.find_or_create(
        Operation.CREATE_SERVER,
        lambda: task.find_server(name),
        lambda: task.site.create_server(name, task.initial_record.tag, reservation_id, source),
        name=name,
        image_id=image_id,
    )


def _wait_until_active(task: LeaseTask, lease: Lease, server: Server) -> Server:
    """Return the server once it is ACTIVE or in ERROR, or at the time limit.

    If the server is not ACTIVE, its ``fault`` states the reason.
    """

    def query_server() -> Server:
        found = task.find_server(server.name)
        if found is None:
            current_lease(task, lease)
        return found or replace(server, status="ERROR", fault="deleted by somebody else")

    limit_s = task.site.boot_limit_s
    ended = task.reconciler.wait(
        f"server {server.name}", query_server, lambda now: now.status in ("ACTIVE", "ERROR"), limit_s
    )
    return ended or replace(server, fault=f"not ACTIVE after {limit_s / 60:.0f} minutes")


def _connect(task: LeaseTask, server: Server) -> Machine:
    """Attach an address to the server, wait until SSH answers, and record the login."""
    address = _find_or_attach_address(task, server)
    login = Login(address.ip, server.id, task.lease_request.key.file, task.reconciler.journal.known_hosts)
    _wait_for_login(task, server, login)
    machine = Machine(server.name, login)
    task.reconciler.journal.record_machine(task.initial_record, machine)
    return machine


@dataclass(frozen=True)
class _LoginAttempt:
    """The result of an attempt to log in.

    status: ssh's error, '' for success. rejected: whether the server has rejected the key for longer than KEY_LIMIT_S.
    """

    status: str = ""
    rejected: bool = False


def _wait_for_login(task: LeaseTask, server: Server, login: Login) -> None:
    """Wait until a command runs on the server. Raises LoginRejected, BadHostKey or NotReached, with ssh's error."""
    rejections: list[float] = []
    site = task.site

    def try_to_log_in() -> _LoginAttempt:
        try:
            (site.try_login if isinstance(site, SimulatedServers) else try_login)(login)
        except BadHostKey:
            raise
        except NotReached as problem:
            _require_server(task, server)
            rejected = isinstance(problem, LoginRejected)
            rejections[:] = [*rejections[:1], task.reconciler.clock.monotonic_s()] if rejected else []
            return _LoginAttempt(str(problem), rejected and rejections[-1] - rejections[0] > KEY_LIMIT_S)
        return _LoginAttempt()

    label = f"SSH to {server.name}"
    ended = task.reconciler.wait(label, try_to_log_in, lambda now: now.rejected or not now.status, SSH_LIMIT_S)
    if ended is None:
        error = try_to_log_in().status
        fix = f"read its console log: openstack console log show {server.name}"
        raise NotReached(f"{server.name} runs, but SSH does not answer ({error}); {fix}")
    if ended.rejected:
        raise LoginRejected(
            f"{server.name} rejects the SSH key {login.key} ({ended.status}); "
            "set --key to the key with which the lease was created, or release the lease and lease again"
        )


def _require_server(task: LeaseTask, server: Server) -> None:
    """Raise LeaseGone or BootFailed if the server no longer exists."""
    if task.reconciler.query(lambda: task.find_server(server.name)) is None:
        if task.reconciler.query(task.find_lease) is None:
            raise lease_gone_error(task)
        raise BootFailed(f"server {server.name} was deleted by somebody else; run the same command to boot it again")


def _find_or_attach_address(task: LeaseTask, server: Server) -> Address:
    """Return the server's address; if it has none, attach an address of this lease."""

    def find_attached_address() -> Address | None:
        return next((address for address in task.site.addresses() if address.server == server.id), None)

    for _ in range(ADDRESS_ATTEMPTS):
        if found := task.reconciler.query(find_attached_address):
            return found
        address = _find_or_allocate_address(task)
        try:
            return task.find_or_create(
                Operation.ATTACH_ADDRESS,
                find_attached_address,
                partial(task.site.attach_address, address, server),
                address_data,
                server=server.id,
                **address_data(address),
            )
        except RequestRejected as problem:
            task.reconciler.report(f"{problem}; trying another address")
    raise NoAddress(
        f"no address could be attached to {server.name}: "
        f"other programs took {ADDRESS_ATTEMPTS} addresses in a row; run the command again"
    )


def _find_or_allocate_address(task: LeaseTask) -> Address:
    """Return a free address that this lease allocated, or allocate one. Never use a free address of another lease."""

    def find_free_address() -> Address | None:
        idle = [address for address in task.site.addresses() if not address.server]
        return first_resource_with_tag(idle, task.initial_record.tag)

    if found := task.reconciler.query(find_free_address):
        return found
    try:
        return task.find_or_create(
            Operation.ALLOCATE_ADDRESS,
            find_free_address,
            lambda: task.site.allocate_address(task.initial_record.tag),
            address_data,
        )
    except NoAddress as problem:
        raise NoAddress(f"{problem}{_idle_addresses_in_words(task)}") from None


def _idle_addresses_in_words(task: LeaseTask) -> str:
    """Return the project's unattached addresses in words, '' if there are none."""
    idle = [address.ip for address in task.reconciler.query(task.site.addresses) if not address.server]
    return (
        f"; unattached addresses of the project: {', '.join(idle)}; release yours: openstack floating ip delete"
        if idle
        else ""
    )
