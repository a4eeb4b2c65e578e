"""What carries a mark of this program but is on no page of the ledger here: one's own alone, others' are never told."""

from collections.abc import Sequence
from dataclasses import dataclass

from provision.errors import BadName
from provision.leasing.journal import ActiveLease
from provision.leasing.reconciler import Reconciler
from provision.leasing.release import things
from provision.models import Thing
from provision.sites.base import Testbed


@dataclass(frozen=True)
class Orphan:
    """A holding that can be cleared, and what is there of it, in words.

    opened_here: by this ledger. Else another one of the same user did: on another computer, where it may be in use, or
    one that is lost.
    """

    active_lease: ActiveLease
    there: tuple[str, ...]
    opened_here: bool


def orphans(site: Testbed, reconciler: Reconciler) -> list[Orphan]:
    """One's own. What another user of the project made, and what tells no owner, is left out."""
    held = {active_lease.tag for active_lease in reconciler.journal.active_leases().values()}
    found: dict[str, list[tuple[str, Thing]]] = {}
    for kind, listed in things(site).items():
        for thing in reconciler.ask(listed):
            if thing.tag and thing.tag not in held:
                found.setdefault(thing.tag, []).append((kind, thing))
    owner, opened = reconciler.ask(site.user_id), reconciler.journal.tags()
    return [
        Orphan(ActiveLease("", tag, site.name, ""), tuple(f"{kind} {one.id}" for kind, one in there), tag in opened)
        for tag, there in found.items()
        if {one.owner for _, one in there} == {owner}
    ]


def chosen(found: Sequence[Orphan], tags: Sequence[str]) -> list[Orphan]:
    """Those of these marks; without any, those that this ledger opened. BadName for a mark that is no orphan's."""
    by_mark = {orphan.active_lease.tag: orphan for orphan in found}
    for tag in tags:
        if tag not in by_mark:
            raise BadName(f"MARK {tag!r}: no orphan of yours; allowed: {', '.join(by_mark) or 'none, there are none'}")
    return [by_mark[tag] for tag in tags] if tags else [orphan for orphan in found if orphan.opened_here]
