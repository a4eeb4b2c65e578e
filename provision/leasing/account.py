"""The account of a lease: the journal records it, and only this account queries or changes the lease.

The site does not list the leases of another project. Therefore, a lease that is missing from a list may still exist.
"""

from datetime import datetime

from provision.availability.times import local_zone, time_in_words
from provision.errors import NoCredentials, OtherAccount, RequestRejected
from provision.leasing.journal import ActiveLease, Operation
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import find_lease
from provision.models import Identity, Requirements
from provision.sites.base import CredentialIssuer, LeasingSite, connect_to


def connect_to_site_of(reconciler: Reconciler, active_lease: ActiveLease) -> LeasingSite:
    """Connect to the lease's site with the lease's account. Raises OtherAccount if another account is configured."""
    site = connect_to(active_lease.site, active_lease.account.entry if active_lease.account else "")
    verify_account(site, reconciler, active_lease)
    return site


def verify_account(site: LeasingSite, reconciler: Reconciler, active_lease: ActiveLease) -> None:
    """Raise OtherAccount unless the connection to ``site`` uses the account that made the lease."""
    current, creator = reconciler.query(site.identity), active_lease.account
    if creator is None:
        _record_missing_account(site, reconciler, active_lease, current)
    elif not current.is_same_as(creator):
        raise OtherAccount(
            f"lease {active_lease.name} was created by {creator}, but the current account is {current}; "
            f"nothing is changed; use the account that created the lease: {_selection_hint(creator)}"
        )


def require_unrestricted(site: LeasingSite, reconciler: Reconciler) -> None:
    """Raise NoCredentials if the account's credential is not allowed to create a lease."""
    if reconciler.query(site.credential).restricted:
        raise NoCredentials(
            "credentials: this application credential is restricted, and a lease needs an unrestricted one; "
            "create one with 'Unrestricted' checked"
        )


def require_lasting_credential(site: LeasingSite, reconciler: Reconciler, requirements: Requirements) -> None:
    """Raise NoCredentials if the credential ends before the lease: the program could then not release the lease."""
    expires_at = reconciler.query(site.credential).expires_at
    lease_end = (requirements.start or reconciler.clock.now()) + requirements.length
    if expires_at and expires_at < lease_end:
        raise NoCredentials(
            f"credentials: {early_expiry_message(expires_at, lease_end)}; log in again, or request a shorter lease"
        )


def credential_issuer(site: LeasingSite) -> CredentialIssuer:
    """Return the site as an issuer of credentials for one lease. Raises RequestRejected if it cannot issue them."""
    if not isinstance(site, CredentialIssuer):
        raise RequestRejected(
            "--end-when-idle: the node would need a credential that can end only its own lease, and"
            f" {site.name} cannot limit a credential to one lease; omit --end-when-idle"
        )
    return site


def require_lease_credentials(site: LeasingSite, reconciler: Reconciler) -> None:
    """Test whether the site issues credentials for one lease. Raises RequestRejected if it does not."""
    reconciler.query(credential_issuer(site).try_lease_credential)


def early_expiry_message(expires_at: datetime, lease_end: datetime) -> str:
    """Return the message that the account's credential ends before the lease."""
    moments = (time_in_words(moment, local_zone()) for moment in (expires_at, lease_end))
    return "the credential ends {}, before the lease ends ({})".format(*moments)


def _record_missing_account(
    site: LeasingSite, reconciler: Reconciler, active_lease: ActiveLease, current: Identity
) -> None:
    """Record ``current`` as the account of a lease that an earlier version of the program recorded without an account.

    Raises OtherAccount if the lease has not reached its end and the site does not list it for this account.
    """
    created = active_lease.outcomes.get(Operation.CREATE_LEASE, {})
    end = datetime.fromisoformat(created["end"]) if "end" in created else reconciler.clock.now()
    if reconciler.clock.now() < end and reconciler.query(lambda: find_lease(site, active_lease)) is None:
        raise OtherAccount(
            f"lease {active_lease.name}: "
            f"the site does not list the lease for {current}, and the journal does not record "
            f"which account created it; use that account; if somebody else deleted the lease, "
            f"it can be released here after {end:%Y-%m-%d %H:%M} UTC"
        )
    reconciler.journal.record_account(active_lease, current)


def _selection_hint(account: Identity) -> str:
    if account.entry and account.entry != "envvars":
        return f"testbed --cloud {account.entry}, or OS_CLOUD={account.entry}"
    return f"source the RC file of project {account.project}"
