"""Whose lease is it? The journal has the account of each lease; only that account is asked about it.

Another project does not list the lease, so what is "not listed" there says nothing about it.
"""

from datetime import datetime

from provision.availability.times import local_zone, time_in_words
from provision.errors import NoCredentials, OtherAccount
from provision.leasing.journal import ActiveLease, Operation
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import find_lease
from provision.models import Identity, Requirements
from provision.sites.base import Testbed, connect_to


def connect_to_lease(reconciler: Reconciler, active_lease: ActiveLease) -> Testbed:
    """Connect to the lease's site with its account. Raises OtherAccount if another one is configured."""
    site = connect_to(active_lease.site, active_lease.account.entry if active_lease.account else "")
    verify_account(site, reconciler, active_lease)
    return site


def verify_account(site: Testbed, reconciler: Reconciler, active_lease: ActiveLease) -> None:
    """Raise OtherAccount unless ``site`` is connected to with the account that made the lease."""
    here, made = reconciler.query(site.identity), active_lease.account
    if made is None:
        _adopt(site, reconciler, active_lease, here)
    elif not here.is_same_as(made):
        raise OtherAccount(
            f"lease {active_lease.name} was made by {made}, and this is {here}; nothing is changed; "
            f"use the account that made it: {_how(made)}"
        )


def require_unrestricted(site: Testbed, reconciler: Reconciler) -> None:
    """Raise NoCredentials for a credential with which the site makes no lease."""
    if reconciler.query(site.credential).restricted:
        raise NoCredentials(
            "credentials: this application credential is restricted, and a lease needs an unrestricted one; "
            "create one with 'Unrestricted' checked"
        )


def require_credential_for(site: Testbed, reconciler: Reconciler, requirements: Requirements) -> None:
    """Raise NoCredentials if the credential ends before the lease, which then nobody could release unattended."""
    ends = reconciler.query(site.credential).ends
    end = (requirements.start or reconciler.clock.now()) + requirements.length
    if ends and ends < end:
        raise NoCredentials(f"credentials: {credential_ends(ends, end)}; log in again, or make a shorter lease")


def credential_ends(ends: datetime, lease_end: datetime) -> str:
    """Return in words that a credential ends before the lease."""
    moments = (time_in_words(moment, local_zone()) for moment in (ends, lease_end))
    return "the credential ends {}, before the lease does ({})".format(*moments)


def _adopt(site: Testbed, reconciler: Reconciler, active_lease: ActiveLease, here: Identity) -> None:
    """Record the account in a record of an earlier version, once its lease is seen or cannot exist any more."""
    created = active_lease.operations.get(Operation.CREATE_LEASE, {})
    end = datetime.fromisoformat(created["end"]) if "end" in created else reconciler.clock.now()
    if reconciler.clock.now() < end and reconciler.query(lambda: find_lease(site, active_lease)) is None:
        raise OtherAccount(
            f"lease {active_lease.name} is not listed for {here}, and its record does not say which account made it; "
            f"use that account; if somebody else deleted it, it can be released here from {end:%Y-%m-%d %H:%M} UTC"
        )
    reconciler.journal.record_account(active_lease, here)


def _how(made: Identity) -> str:
    if made.entry and made.entry != "envvars":
        return f"testbed --cloud {made.entry}, or OS_CLOUD={made.entry}"
    return f"source the RC file of project {made.project}"
