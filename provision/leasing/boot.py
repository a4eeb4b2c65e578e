"""From an ACTIVE lease to machines that answer: key, volume, server, address, SSH."""

from dataclasses import replace
from functools import partial

from provision.errors import BootFailed, NoAddress, NotReached, Refused
from provision.leasing.journal import Machine, Operation
from provision.leasing.request import LeaseTask, address_data, drop_servers, drop_volumes, tagged
from provision.leasing.reserve import lease_elsewhere, still_there
from provision.models import Address, Lease, Server, Volume
from provision.ssh.login import Login, answers

BEING_MADE = ("creating", "downloading")
"""What cinder says of a volume until the image is in it."""
SSH_LIMIT_S = 20 * 60
"""How long an ACTIVE server may take until it answers: its system starts after the site has done its part."""
BOOT_ATTEMPTS = 3
ADDRESS_ATTEMPTS = 3


def bring_up(task: LeaseTask, lease: Lease) -> tuple[str, tuple[Machine, ...]]:
    """The image's UUID, and the order's machines, booted and reached."""
    _prepare(task)
    image_id = task.reconciler.ask(task.site.image_id)
    servers = _booted(task, lease, image_id)
    return image_id, tuple(_reached(task, server) for server in servers)


def _prepare(task: LeaseTask) -> None:
    """The SSH key at the site, and SSH let through where the site has to be told."""
    site, tag = task.site, task.opened.tag
    task.ensure(
        Operation.UPLOAD_KEY,
        lambda: tagged(site.keys(), tag),
        lambda: site.upload_key(tag, task.lease_request.key.public),
    )
    if site.opens_ssh:
        task.ensure(
            Operation.OPEN_SSH,
            lambda: tagged([one for one in site.openings() if one.whole], tag),
            lambda: site.open_ssh(tag),
        )


def _booted(task: LeaseTask, lease: Lease, image_id: str) -> list[Server]:
    """The order's servers, all of them ACTIVE, if need be on other hosts; BootFailed with the site's reason."""
    for attempt in range(1, BOOT_ATTEMPTS + 1):
        named = zip(task.lease_request.server_names, lease.resources, strict=True)
        created = [_create(task, resource, name, _source(task, name, image_id), image_id) for name, resource in named]
        servers = [_boot(task, lease, server) for server in created]
        failed = [number for number, server in enumerate(servers) if server.status != "ACTIVE"]
        if not failed:
            return servers
        faults = [_give_up(task, servers[number], lease.hosts[number : number + 1]) for number in failed]
        task.reconciler.say(f"attempt {attempt} of {BOOT_ATTEMPTS}: {'; '.join(faults)}")
        if attempt < BOOT_ATTEMPTS:
            lease = lease_elsewhere(task, lease)
    raise BootFailed(
        f"{'; '.join(faults)}, after {BOOT_ATTEMPTS} attempts; release the lease and take other nodes, "
        "and tell the site's help desk of these"
    )


def _give_up(task: LeaseTask, server: Server, hosts: tuple[str, ...]) -> str:
    """Delete a server that failed on these hosts, and remember them; what was wrong, in words."""
    task.reconciler.journal.write(
        "failed", task.opened, Operation.CREATE_SERVER, hosts=list(hosts), reason=server.fault
    )
    drop_servers(task.site, task.reconciler, task.opened, server.name)
    drop_volumes(task.site, task.reconciler, task.opened, server.name)
    names = [host.name for host in task.reconciler.ask(task.site.hosts) if host.id in hosts]
    where = f" on {names[0]}" if names else ""
    return f"server {server.name} did not boot{where}; the site says: {server.fault}"


def _source(task: LeaseTask, name: str, image_id: str) -> str:
    """The id of what the server of that name boots from: the image, or a volume that is made of it."""
    if not task.site.boots_from_volume:
        return image_id

    def own() -> Volume | None:
        return next((one for one in task.site.volumes() if one.tag == task.opened.tag and one.name == name), None)

    made = task.ensure(
        Operation.CREATE_VOLUME,
        own,
        lambda: task.site.create_volume(name, task.opened.tag, image_id),
        name=name,
        image_id=image_id,
    )
    ready = task.reconciler.wait(
        f"volume {name}", own, lambda now: now is None or now.status not in BEING_MADE, task.site.boot_limit_s
    )
    if ready is None or ready.status.startswith("error"):
        drop_volumes(task.site, task.reconciler, task.opened, name)
        raise BootFailed(f"volume {name} was not made of image {image_id}; the site says: {(ready or made).status}")
    return ready.id


def _create(task: LeaseTask, resource: str, name: str, source: str, image_id: str) -> Server:
    return task.ensure(
        Operation.CREATE_SERVER,
        lambda: task.find_server(name),
        lambda: task.site.create_server(name, task.opened.tag, resource, source),
        name=name,
        image_id=image_id,
    )


def _boot(task: LeaseTask, lease: Lease, server: Server) -> Server:
    """The server once it is ACTIVE or in ERROR, or as it is when its time is over; fault says why it is not ACTIVE."""

    def state() -> Server:
        found = task.find_server(server.name)
        if found is None:
            still_there(task, lease)
        return found or replace(server, status="ERROR", fault="deleted by others")

    limit_s = task.site.boot_limit_s
    ended = task.reconciler.wait(f"server {server.name}", state, lambda now: now.status in ("ACTIVE", "ERROR"), limit_s)
    return ended or replace(server, fault=f"not ACTIVE after {limit_s / 60:.0f} minutes")


def _reached(task: LeaseTask, server: Server) -> Machine:
    address = _addressed(task, server)
    login = Login(address.ip, server.id, task.lease_request.key.file, task.reconciler.journal.known_hosts)
    reached = task.reconciler.wait(
        f"SSH to {server.name} at {address.ip}",
        lambda: answers(login),
        bool,
        SSH_LIMIT_S,
    )
    if not reached:
        raise NotReached(f"{server.name} runs, but SSH to {address.ip} does not answer; its console log may say why")
    machine = Machine(server.name, login)
    task.reconciler.journal.reached(task.opened, machine)
    return machine


def _addressed(task: LeaseTask, server: Server) -> Address:
    """An address that leads to the server: a free one of the project first, else one that is taken now."""

    def own() -> Address | None:
        return next((one for one in task.site.addresses() if one.server == server.id), None)

    for _ in range(ADDRESS_ATTEMPTS):
        if there := task.reconciler.ask(own):
            return there
        address = _free_address(task)
        try:
            return task.ensure(
                Operation.ATTACH_ADDRESS,
                own,
                partial(task.site.attach_address, address, server),
                address_data,
                server=server.id,
                **address_data(address),
            )
        except Refused as problem:
            task.reconciler.say(f"{problem}; trying another address")
    raise NoAddress(f"no address could be attached to {server.name}: others took it {ADDRESS_ATTEMPTS} times")


def _free_address(task: LeaseTask) -> Address:
    def free() -> Address | None:
        """One that this job took already, else one that nobody has marked."""
        spare = [one for one in task.site.addresses() if not one.server and one.tag in ("", task.opened.tag)]
        return max(spare, key=lambda one: one.tag, default=None)

    if there := task.reconciler.ask(free):
        return there
    return task.ensure(
        Operation.ALLOCATE_ADDRESS, free, lambda: task.site.allocate_address(task.opened.tag), address_data
    )
