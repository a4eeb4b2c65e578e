"""Set up a leased node so that it ends its lease when it is idle. Its credential is valid only for this lease."""

from provision.configure.playbook import configure_end_when_idle
from provision.errors import BadKey, LeaseGone, NotReached, RequestRejected
from provision.leasing.account import credential_issuer
from provision.leasing.journal import Operation
from provision.leasing.reconciler import Reconciler
from provision.leasing.release import get_active_lease
from provision.leasing.request import EndWhenIdle, end_when_idle_data, find_lease
from provision.models import LeaseCredential
from provision.sites.base import LeasingSite
from provision.ssh.known_hosts import known_hosts_lines

ROLE = "end_when_idle"


def set_up_end_when_idle(site: LeasingSite, reconciler: Reconciler, name: str, end_when_idle: EndWhenIdle) -> None:
    """Set up the node of the active lease ``name`` so that the node ends the lease when it is idle.

    Each call creates a new credential, because keystone returns a secret only once, and only the node stores it.
    Raises ConfigureFailed if the node cannot read the lease with the credential or cannot reach the rsync target of
    the results, RequestRejected for a lease of several nodes, NotReached if no node has answered yet, and LeaseGone for
    a lease that is over.
    """
    issuer = credential_issuer(site)
    active_lease = get_active_lease(reconciler, name)
    if (count := len(active_lease.machines)) > 1:
        raise RequestRejected(f"lease {name} has {count} nodes; --end-when-idle is allowed with one node")
    if not count:
        raise NotReached(f"lease {name} cannot end itself yet: no node has answered; run the command again")
    lease = reconciler.query(lambda: find_lease(site, active_lease))
    if lease is None:
        raise LeaseGone(f"lease {name} no longer exists; lease again")
    results_variables = _results_variables(end_when_idle)
    with reconciler.journal.lock_lease(name):
        credential = reconciler.find_or_create(
            active_lease,
            Operation.CREATE_CREDENTIAL,
            lambda: None,
            lambda: issuer.create_lease_credential(active_lease.tag, lease),
            lambda created: {"id": created.id},
            **end_when_idle_data(end_when_idle),
        )
        variables = _credential_variables(credential, end_when_idle) | results_variables
        configure_end_when_idle(active_lease.machines[0], variables, reconciler.report)
        outcome = {"id": credential.id, **end_when_idle_data(end_when_idle)}
        reconciler.journal.write("done", active_lease, Operation.CREATE_CREDENTIAL, **outcome)
    reconciler.report(f"lease {name} {end_when_idle.in_words}")


def _credential_variables(credential: LeaseCredential, end_when_idle: EndWhenIdle) -> dict[str, object]:
    """Return the role's variables for the idle time and the credential."""
    return {
        f"{ROLE}_after_s": end_when_idle.after.total_seconds(),
        f"{ROLE}_auth_url": credential.auth_url,
        f"{ROLE}_lease_url": credential.lease_url,
        f"{ROLE}_credential_id": credential.id,
        f"{ROLE}_secret": credential.secret,
    }


def _results_variables(end_when_idle: EndWhenIdle) -> dict[str, object]:
    """Return the role's variables for the rsync target; {} without one.

    Raises BadKey if the SSH key is missing, and BadHostKey if the target's host key is unknown.
    """
    if not end_when_idle.results_to:
        return {}
    if end_when_idle.key is None or not end_when_idle.key.is_file():
        raise BadKey(
            f"results key {end_when_idle.key}: no such file; "
            "set --results-key to the private key file with which the node copies the results"
        )
    host = end_when_idle.results_to.rpartition(":")[0].rpartition("@")[2]
    return {
        f"{ROLE}_results_to": end_when_idle.results_to,
        f"{ROLE}_results_key": end_when_idle.key.read_text(),
        f"{ROLE}_results_known_hosts": known_hosts_lines(host),
    }
