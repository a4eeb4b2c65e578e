"""The resources of a lease at its site: how each kind is listed and deleted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from provision.errors import ProvisionError
from provision.leasing.journal import ActiveLease, Operation
from provision.leasing.reconciler import Reconciler
from provision.models import Resource
from provision.sites.base import BootVolumes, CredentialIssuer, LeasingSite, SecurityGroups

DELETE_LIMIT_S = 10 * 60
ResourceQuery = Callable[[], Sequence[Resource]]
QueryRunner = Callable[[ResourceQuery], Sequence[Resource]]


@dataclass(frozen=True)
class ResourceKind:
    """A kind of resource. stays_listed: whether the site still lists a resource for a while after its deletion.

    user_id: returns the id of the account's user.
    """

    name: str
    deletion: Operation
    list: Callable[[], Sequence[Resource]]
    delete: Callable[[Any], None]
    user_id: Callable[[], str]
    stays_listed: bool = False

    def list_tagged(self, tag: str, name: str | None = None) -> Sequence[Resource]:
        """Return the user's resources with this tag, and this name if one is given.

        A copy of the lease's server that somebody else made has the same tag, but another owner, and is not returned.
        """
        tagged = [resource for resource in self.list() if resource.tag == tag]
        named = [resource for resource in tagged if name in (None, getattr(resource, "name", None))]
        return [resource for resource in named if resource.owner in ("", self.user_id())]


def all_kinds(site: LeasingSite) -> tuple[ResourceKind, ...]:
    """Return the kinds of resources at the site in the order of deletion; leases first, as only leases are charged."""
    return (
        ResourceKind("lease", Operation.DELETE_LEASE, site.leases, site.delete_lease, site.user_id),
        *server_kinds(site),
        ResourceKind("address", Operation.RELEASE_ADDRESS, site.addresses, site.release_address, site.user_id),
        ResourceKind("key", Operation.DELETE_KEY, site.keys, site.delete_key, site.user_id),
        *_security_group_kinds(site),
        *_credential_kinds(site),
    )


def possible_kinds(active_lease: ActiveLease, kinds: Sequence[ResourceKind]) -> list[ResourceKind]:
    """Return ``kinds``, without credentials if the program never requested a credential for the lease.

    The release of such a lease then does not need an answer of keystone. A record without a name, as for leaked
    resources, does not tell whether a credential was requested, so credentials are included.
    """
    recorded = {*active_lease.intents, *active_lease.outcomes}
    without_credential = active_lease.name and Operation.CREATE_CREDENTIAL not in recorded
    return [kind for kind in kinds if not (without_credential and kind.deletion == Operation.DELETE_CREDENTIAL)]


def server_kinds(site: LeasingSite) -> tuple[ResourceKind, ...]:
    """Return the kinds of resources that make up a server, in the order of their deletion."""
    servers = ResourceKind(
        "server", Operation.DELETE_SERVER, site.servers, site.delete_server, site.user_id, stays_listed=True
    )
    if not isinstance(site, BootVolumes):
        return (servers,)
    return servers, ResourceKind(
        "volume", Operation.DELETE_VOLUME, site.volumes, site.delete_volume, site.user_id, stays_listed=True
    )


def delete_tagged(
    reconciler: Reconciler, active_lease: ActiveLease, kind: ResourceKind, name: str | None = None
) -> None:
    """Delete the lease's resources of one kind, or only the resource with this name; wait until they are gone."""

    def list_present() -> Sequence[Resource]:
        return kind.list_tagged(active_lease.tag, name)

    def list_deletable() -> Sequence[Resource]:
        return [resource for resource in list_present() if getattr(resource, "status", "") != "deleting"]

    reconciler.delete_all(active_lease, kind.deletion, list_deletable, kind.delete)
    if kind.stays_listed:
        reconciler.wait(f"{kind.name}s being deleted", list_present, lambda left: not left, DELETE_LIMIT_S, every_s=2)


def list_resources_once(site: LeasingSite, active_lease: ActiveLease) -> list[str]:
    """Return the lease's resources at the site as lines of text; do not query a service again if it does not answer."""
    return [
        line
        for kind in possible_kinds(active_lease, all_kinds(site))
        for line in _resources_in_words(kind, active_lease, _query_once)
    ]


def list_resources(site: LeasingSite, reconciler: Reconciler, active_lease: ActiveLease) -> list[str]:
    """Return the lease's resources at the site as lines of text; query each service until it answers."""
    return [
        line
        for kind in possible_kinds(active_lease, all_kinds(site))
        for line in _resources_in_words(kind, active_lease, reconciler.query)
    ]


def _query_once(query: ResourceQuery) -> Sequence[Resource]:
    return query()


def _resources_in_words(kind: ResourceKind, active_lease: ActiveLease, query: QueryRunner) -> list[str]:
    """Return the lease's resources of a kind as lines of text; one line with the reason if the query fails."""
    try:
        return [f"{kind.name} {resource.id}" for resource in query(lambda: kind.list_tagged(active_lease.tag))]
    except ProvisionError as problem:
        return [f"{kind.name} not known ({problem})"]


def _security_group_kinds(site: LeasingSite) -> tuple[ResourceKind, ...]:
    if not isinstance(site, SecurityGroups):
        return ()
    delete = site.delete_security_group
    return (ResourceKind("security group", Operation.CLOSE_SSH, site.security_groups, delete, site.user_id),)


def _credential_kinds(site: LeasingSite) -> tuple[ResourceKind, ...]:
    if not isinstance(site, CredentialIssuer):
        return ()
    operations = site.lease_credentials, site.delete_lease_credential, site.user_id
    return (ResourceKind("credential", Operation.DELETE_CREDENTIAL, *operations),)
