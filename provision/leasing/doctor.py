"""What a lease needs, checked before it is asked for. Each check passes or names its remedy; no secret is told."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from provision.errors import ProvisionError, Unreachable
from provision.leasing.reconciler import Reconciler
from provision.sites.base import Testbed, connect_to
from provision.ssh.login import KINDS, fingerprint, key_pair

TOOLS = ("ssh", "ssh-keygen")
SKEW = timedelta(minutes=2)


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it is well, and the finding or the remedy in a line."""

    name: str
    passed: bool
    text: str

    @property
    def line(self) -> str:
        return f"{'ok  ' if self.passed else 'FAIL'}  {self.name}: {self.text}"


def examine(site_name: str, key: Path, reconciler: Reconciler) -> list[Check]:
    """All checks; those that need the site are left out where its account is no good."""
    here = [
        _check("local tools", _tools),
        _check("SSH key", lambda: _local_key(key)),
        _check("ledger", lambda: _ledger(reconciler)),
    ]
    sites: list[Testbed] = []

    def account() -> str:
        sites.append(connect_to(site_name))
        return sites[0].scope()

    here.append(_check("account", account))
    if not here[-1].passed:
        return here
    site = sites[0]
    there: dict[str, Callable[[], str]] = {
        "reservations": lambda: f"{len(site.hosts())} nodes can be reserved at {site.name}",
        "image": lambda: f"image {site.image_id()}",
        "quota": site.quota,
        "floating IPs": lambda: _addresses(site),
        "SSH key at the site": lambda: _site_key(site, key, reconciler),
        "service units": site.service_units,
        "clock": lambda: _clock(site),
    }
    return here + [_check(name, question) for name, question in there.items()]


class Unwell(ProvisionError):
    """What a check found wrong; the message names the remedy."""


def _check(name: str, question: Callable[[], str]) -> Check:
    try:
        return Check(name, True, question())
    except Unreachable as problem:
        return Check(name, False, f"{problem}; try again later, and look for outages at chameleoncloud.org")
    except ProvisionError as problem:
        return Check(name, False, str(problem))


def _tools() -> str:
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        raise Unwell(f"{', '.join(missing)} missing; install OpenSSH's client (apt install openssh-client)")
    return ", ".join(TOOLS)


def _local_key(key: Path) -> str:
    key_pair(key)
    if key.stat().st_mode & 0o077:
        raise Unwell(f"{key} can be read by others; chmod 600 {key}")
    return str(key)


def _ledger(reconciler: Reconciler) -> str:
    held = ", ".join(sorted(reconciler.journal.active_leases()))
    return f"{reconciler.journal.folder}: {held or 'nothing'} held"


def _addresses(site: Testbed) -> str:
    free = [one for one in site.addresses() if not one.server]
    if free:
        return f"{len(free)} free in the project"
    left = site.addresses_left()
    if left == 0:
        raise Unwell("none is free and the project may take no more; release one, or ask the site's help desk")
    return "none is free in the project; one will be taken" if left is None else f"the project may take {left} more"


def _site_key(site: Testbed, key: Path, reconciler: Reconciler) -> str:
    """A lease uploads the key under its mark. One at the site of that name, or of the file's, has to be the same."""
    here = fingerprint(key_pair(key).public)
    there = {name: fingerprint(text) for name, text in site.public_keys() if text.startswith(KINDS)}
    for active_lease in reconciler.journal.active_leases().values():
        if there.get(active_lease.tag, here) != here:
            raise Unwell(
                f"lease {active_lease.name} was made with {there[active_lease.tag]}, and {key} is {here}; "
                "name the key that it was made with by --key, or release it and lease anew"
            )
    if there.get(key.name, here) != here:
        raise Unwell(
            f"{key.name} is {there[key.name]} there, and {key} is {here}; "
            f"name the right one by --key, or delete the one at the site (openstack keypair delete {key.name})"
        )
    names = [name for name, other in there.items() if other == here]
    return f"at the site as {', '.join(names)}" if names else "not at the site yet; a lease uploads it"


def _clock(site: Testbed) -> str:
    skew = abs(site.skew())
    if skew > SKEW:
        raise Unwell(
            f"this computer's clock is {skew.total_seconds():.0f} s off the site's; set it (timedatectl set-ntp true)"
        )
    return f"{skew.total_seconds():.0f} s off the site's"
