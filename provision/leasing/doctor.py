"""Checks before a lease. A failed check says how to fix the problem; no message contains a secret."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from provision.availability.times import local_zone, time_in_words
from provision.checks import Check, run_check, skip_checks
from provision.choices import DISK_IMAGE
from provision.errors import PreflightCheckFailed, RequestRejected
from provision.leasing.account import require_unrestricted
from provision.leasing.reconciler import Reconciler
from provision.sites.base import CredentialIssuer, LeasingSite, connect_to
from provision.ssh.login import PUBLIC_KEY_PREFIXES, check_key, fingerprint, key_pair

TOOLS = ("ssh", "ssh-keygen")
HOUR = timedelta(hours=1)
SHORTEST_VALIDITY = 3 * HOUR
"""Shortest time for which a credential must still be valid. The labs need this much time."""
MAX_CLOCK_SKEW = timedelta(minutes=2)


@dataclass(frozen=True)
class _PlannedLease:
    """A lease that the user may request next. key: the private key's file. image: the name of the disk image."""

    site: LeasingSite
    key: Path
    image: str
    reconciler: Reconciler


def check_site(site_name: str, key: Path, reconciler: Reconciler, image: str = DISK_IMAGE) -> list[Check]:
    """Run all checks for nodes with this disk image. If the account is unusable, skip the checks that need the site."""
    local = [
        run_check("local tools", _check_tools),
        run_check("SSH key", lambda: _check_local_key(key)),
        run_check("time zone", _check_time_zone),
        run_check("journal", lambda: _check_journal(reconciler)),
    ]
    sites: list[LeasingSite] = []

    def check_account() -> str:
        sites.append(connect_to(site_name))
        return str(sites[0].identity())

    local.append(run_check("account", check_account))
    if not local[-1].passed:
        return local + skip_checks(SITE_CHECKS, "account")
    planned = _PlannedLease(sites[0], key, image, reconciler)
    return local + [run_check(name, partial(check, planned)) for name, check in SITE_CHECKS.items()]


def _check_tools() -> str:
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        raise PreflightCheckFailed(
            f"{', '.join(missing)} missing; install the OpenSSH client (apt install openssh-client)"
        )
    return ", ".join(TOOLS)


def _check_local_key(key: Path) -> str:
    check_key(key_pair(key))
    return str(key)


def _check_time_zone() -> str:
    named = os.environ.get("TZ", "").removeprefix(":")
    if named and local_zone().key != named:
        raise PreflightCheckFailed(
            f"TZ {named!r} is unknown, so times are shown in UTC; allowed: names such as Europe/Helsinki"
        )
    return local_zone().key


def _check_journal(reconciler: Reconciler) -> str:
    active = ", ".join(sorted(reconciler.journal.active_leases()))
    return f"{reconciler.journal.folder}: active leases: {active or 'none'}"


def _check_credential(site: LeasingSite, reconciler: Reconciler) -> str:
    require_unrestricted(site, reconciler)
    expires_at = site.credential().expires_at
    if expires_at is None:
        return "does not expire"
    when = time_in_words(expires_at, local_zone())
    if expires_at < reconciler.clock.now() + SHORTEST_VALIDITY:
        raise PreflightCheckFailed(
            f"expires {when}; too early for a lease of {SHORTEST_VALIDITY / HOUR:g} h; log in again"
        )
    return f"expires {when}; a lease can be released until then, or after another login"


def _check_addresses(site: LeasingSite) -> str:
    left = site.addresses_left()
    if left == 0:
        idle = ", ".join(address.ip for address in site.addresses() if not address.server) or "none"
        raise PreflightCheckFailed(
            f"the project's quota is used up; release one of your addresses, or ask the site's help desk; "
            f"unattached addresses: {idle}"
        )
    return "the project has no limit" if left is None else f"the project may allocate {left} more"


def _check_site_key(site: LeasingSite, key: Path, reconciler: Reconciler) -> str:
    """Compare the local key with keys at the site: the keys of active leases, and the key with the file's name."""
    local = fingerprint(key_pair(key).public)
    remote = {name: fingerprint(text) for name, text in site.public_keys() if text.startswith(PUBLIC_KEY_PREFIXES)}
    for active_lease in reconciler.journal.active_leases().values():
        if remote.get(active_lease.tag, local) != local:
            raise PreflightCheckFailed(
                f"lease {active_lease.name} was created with the key {remote[active_lease.tag]}, but {key} is {local}; "
                "set --key to the key with which the lease was created, or release the lease and lease again"
            )
    if remote.get(key.name, local) != local:
        raise PreflightCheckFailed(
            f"the key {key.name} at the site is {remote[key.name]}, but {key} is {local}; "
            f"set --key to the right key, or delete the key at the site (openstack keypair delete {key.name})"
        )
    names = [name for name, other in remote.items() if other == local]
    return f"stored under the name {', '.join(names)}" if names else "not at the site yet; a lease uploads it"


def _check_clock(site: LeasingSite) -> str:
    skew = abs(site.clock_skew())
    if skew > MAX_CLOCK_SKEW:
        raise PreflightCheckFailed(
            f"this computer's clock is {skew.total_seconds():.0f} s off the site's; set it: timedatectl set-ntp true"
        )
    return f"{skew.total_seconds():.0f} s off the site's clock"


def _check_end_when_idle(site: LeasingSite) -> str:
    """Return in words whether a lease can end itself. The check passes in both cases."""
    if not isinstance(site, CredentialIssuer):
        return "not possible: the site cannot limit a credential to one lease"
    try:
        site.try_lease_credential()
    except RequestRejected as problem:
        return f"not possible: {problem}"
    return "possible: testbed lease --end-when-idle 30m"


SITE_CHECKS: dict[str, Callable[[_PlannedLease], str]] = {
    "credential": lambda planned: _check_credential(planned.site, planned.reconciler),
    "reservations": lambda planned: f"{len(planned.site.hosts())} reservable nodes at {planned.site.name}",
    "image": lambda planned: f"image {planned.image} ({planned.site.image_id(planned.image)})",
    "boot": lambda planned: planned.site.check_boot_requirements(),
    "quota": lambda planned: planned.site.check_quota(),
    "floating IPs": lambda planned: _check_addresses(planned.site),
    "SSH key at the site": lambda planned: _check_site_key(planned.site, planned.key, planned.reconciler),
    "service units": lambda planned: planned.site.service_units_in_words(),
    "end when idle": lambda planned: _check_end_when_idle(planned.site),
    "clock": lambda planned: _check_clock(planned.site),
}
"""The checks that need an account, by name."""
