"""From an ACTIVE lease to machines that answer: key, volume, server, address, SSH."""

from dataclasses import replace
from functools import partial

from provision.errors import BootFailed, NoAddress, NotReached, Refused
from provision.leasing.ledger import Act, Machine
from provision.leasing.order import Job, address_data, drop_servers, drop_volumes, marked
from provision.leasing.reserve import lease_elsewhere, still_there
from provision.models import Address, Lease, Server, Volume
from provision.ssh.login import Login, answers

BEING_MADE = ("creating", "downloading")
"""What cinder says of a volume until the image is in it."""
SSH_LIMIT_S = 20 * 60
"""How long an ACTIVE server may take until it answers: its system starts after the site has done its part."""
BOOT_ATTEMPTS = 3
ADDRESS_ATTEMPTS = 3


def bring_up(job: Job, lease: Lease) -> tuple[str, tuple[Machine, ...]]:
    """The image's UUID, and the order's machines, booted and reached."""
    _prepare(job)
    image_id = job.desk.ask(job.site.image_id)
    servers = _booted(job, lease, image_id)
    return image_id, tuple(_reached(job, server) for server in servers)


def _prepare(job: Job) -> None:
    """The SSH key at the site, and SSH let through where the site has to be told."""
    site, mark = job.site, job.opened.mark
    job.ensure(
        Act.UPLOAD_KEY,
        lambda: marked(site.keys(), mark),
        lambda: site.upload_key(mark, job.order.key.public),
    )
    if site.opens_ssh:
        job.ensure(
            Act.OPEN_SSH,
            lambda: marked([one for one in site.openings() if one.whole], mark),
            lambda: site.open_ssh(mark),
        )


def _booted(job: Job, lease: Lease, image_id: str) -> list[Server]:
    """The order's servers, all of them ACTIVE, if need be on other hosts; BootFailed with the site's reason."""
    for attempt in range(1, BOOT_ATTEMPTS + 1):
        named = zip(job.order.server_names, lease.resources, strict=True)
        created = [_create(job, resource, name, _source(job, name, image_id), image_id) for name, resource in named]
        servers = [_boot(job, lease, server) for server in created]
        failed = [number for number, server in enumerate(servers) if server.status != "ACTIVE"]
        if not failed:
            return servers
        faults = [_give_up(job, servers[number], lease.hosts[number : number + 1]) for number in failed]
        job.desk.say(f"attempt {attempt} of {BOOT_ATTEMPTS}: {'; '.join(faults)}")
        if attempt < BOOT_ATTEMPTS:
            lease = lease_elsewhere(job, lease)
    raise BootFailed(
        f"{'; '.join(faults)}, after {BOOT_ATTEMPTS} attempts; release the lease and take other nodes, "
        "and tell the site's help desk of these"
    )


def _give_up(job: Job, server: Server, hosts: tuple[str, ...]) -> str:
    """Delete a server that failed on these hosts, and remember them; what was wrong, in words."""
    job.desk.ledger.write("failed", job.opened, Act.CREATE_SERVER, hosts=list(hosts), reason=server.fault)
    drop_servers(job.site, job.desk, job.opened, server.name)
    drop_volumes(job.site, job.desk, job.opened, server.name)
    names = [host.name for host in job.desk.ask(job.site.hosts) if host.id in hosts]
    where = f" on {names[0]}" if names else ""
    return f"server {server.name} did not boot{where}; the site says: {server.fault}"


def _source(job: Job, name: str, image_id: str) -> str:
    """The id of what the server of that name boots from: the image, or a volume that is made of it."""
    if not job.site.boots_from_volume:
        return image_id

    def own() -> Volume | None:
        return next((one for one in job.site.volumes() if one.mark == job.opened.mark and one.name == name), None)

    made = job.ensure(
        Act.CREATE_VOLUME,
        own,
        lambda: job.site.create_volume(name, job.opened.mark, image_id),
        name=name,
        image_id=image_id,
    )
    ready = job.desk.wait(
        f"volume {name}", own, lambda now: now is None or now.status not in BEING_MADE, job.site.boot_limit_s
    )
    if ready is None or ready.status.startswith("error"):
        drop_volumes(job.site, job.desk, job.opened, name)
        raise BootFailed(f"volume {name} was not made of image {image_id}; the site says: {(ready or made).status}")
    return ready.id


def _create(job: Job, resource: str, name: str, source: str, image_id: str) -> Server:
    return job.ensure(
        Act.CREATE_SERVER,
        lambda: job.find_server(name),
        lambda: job.site.create_server(name, job.opened.mark, resource, source),
        name=name,
        image_id=image_id,
    )


def _boot(job: Job, lease: Lease, server: Server) -> Server:
    """The server once it is ACTIVE or in ERROR, or as it is when its time is over; fault says why it is not ACTIVE."""

    def state() -> Server:
        found = job.find_server(server.name)
        if found is None:
            still_there(job, lease)
        return found or replace(server, status="ERROR", fault="deleted by others")

    limit_s = job.site.boot_limit_s
    ended = job.desk.wait(f"server {server.name}", state, lambda now: now.status in ("ACTIVE", "ERROR"), limit_s)
    return ended or replace(server, fault=f"not ACTIVE after {limit_s / 60:.0f} minutes")


def _reached(job: Job, server: Server) -> Machine:
    address = _addressed(job, server)
    login = Login(address.ip, server.id, job.order.key.file, job.desk.ledger.known_hosts)
    reached = job.desk.wait(
        f"SSH to {server.name} at {address.ip}",
        lambda: answers(login),
        bool,
        SSH_LIMIT_S,
    )
    if not reached:
        raise NotReached(f"{server.name} runs, but SSH to {address.ip} does not answer; its console log may say why")
    machine = Machine(server.name, login)
    job.desk.ledger.reached(job.opened, machine)
    return machine


def _addressed(job: Job, server: Server) -> Address:
    """An address that leads to the server: a free one of the project first, else one that is taken now."""

    def own() -> Address | None:
        return next((one for one in job.site.addresses() if one.server == server.id), None)

    for _ in range(ADDRESS_ATTEMPTS):
        if there := job.desk.ask(own):
            return there
        address = _free_address(job)
        try:
            return job.ensure(
                Act.ATTACH_ADDRESS,
                own,
                partial(job.site.attach_address, address, server),
                address_data,
                server=server.id,
                **address_data(address),
            )
        except Refused as problem:
            job.desk.say(f"{problem}; trying another address")
    raise NoAddress(f"no address could be attached to {server.name}: others took it {ADDRESS_ATTEMPTS} times")


def _free_address(job: Job) -> Address:
    def free() -> Address | None:
        """One that this job took already, else one that nobody has marked."""
        spare = [one for one in job.site.addresses() if not one.server and one.mark in ("", job.opened.mark)]
        return max(spare, key=lambda one: one.mark, default=None)

    if there := job.desk.ask(free):
        return there
    return job.ensure(Act.ALLOCATE_ADDRESS, free, lambda: job.site.allocate_address(job.opened.mark), address_data)
