"""Resources that have a tag of this program but belong to no active lease of the local journal.

Only the user's own resources are listed, never resources of other users.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from provision.errors import BadName, NotReleased, SiteError
from provision.leasing.journal import ActiveLease
from provision.leasing.reconciler import Reconciler
from provision.leasing.release import delete_resources
from provision.leasing.resources import all_kinds
from provision.models import Resource
from provision.sites.base import LeasingSite


@dataclass(frozen=True)
class LeakedResources:
    """The leaked resources of one tag, as text, and the lease record with which they can be deleted.

    in_journal: whether the local journal created the tag. If not, another journal of the same user created it. That
    journal is lost, or it is on another computer and the lease may be in use.
    """

    active_lease: ActiveLease
    resources: tuple[str, ...]
    in_journal: bool


def leaked_resources(site: LeasingSite, reconciler: Reconciler) -> list[LeakedResources]:
    """Return the user's leaked resources by tag. Omits resources of other or unknown owners."""
    active = {active_lease.tag for active_lease in reconciler.journal.active_leases().values()}
    by_tag: dict[str, list[tuple[str, Resource]]] = {}
    for kind in all_kinds(site):
        for resource in reconciler.query(kind.list):
            if resource.tag and resource.tag not in active:
                by_tag.setdefault(resource.tag, []).append((kind.name, resource))
    owner, journal_tags = reconciler.query(site.user_id), reconciler.journal.tags()
    return [
        LeakedResources(
            ActiveLease("", tag, site.name, ""),
            tuple(f"{kind} {resource.id}" for kind, resource in found),
            tag in journal_tags,
        )
        for tag, found in by_tag.items()
        if {resource.owner for _, resource in found} == {owner}
    ]


def select_by_tag(leaked: Sequence[LeakedResources], tags: Sequence[str]) -> list[LeakedResources]:
    """Return the leaked resources with these tags; without tags, those whose tag the local journal created.

    Raises BadName for a tag that no leaked resource has.
    """
    by_tag = {resources.active_lease.tag: resources for resources in leaked}
    for tag in tags:
        if tag not in by_tag:
            allowed = ", ".join(by_tag) or "none, as nothing has leaked"
            raise BadName(f"TAG {tag!r}: no leaked resource of yours has it; allowed: {allowed}")
    return [by_tag[tag] for tag in tags] if tags else [resources for resources in leaked if resources.in_journal]


def delete_leaked(site: LeasingSite, reconciler: Reconciler, leaked: Sequence[LeakedResources]) -> None:
    """Delete leaked resources. A failure does not stop other deletions. Raises NotReleased with all failures."""
    problems = []
    for resources in leaked:
        try:
            delete_resources(site, reconciler, resources.active_lease)
        except SiteError as problem:
            problems.append(str(problem))
    if problems:
        raise NotReleased("; ".join(problems))
