"""What carries a mark of this program but is on no page of the ledger here: one's own alone, others' are never told."""

from collections.abc import Sequence
from dataclasses import dataclass

from provision.errors import BadName
from provision.leasing.ledger import Holding
from provision.leasing.reconciler import Desk
from provision.leasing.release import things
from provision.models import Thing
from provision.sites.base import Testbed


@dataclass(frozen=True)
class Orphan:
    """A holding that can be cleared, and what is there of it, in words.

    opened_here: by this ledger. Else another one of the same user did: on another computer, where it may be in use, or
    one that is lost.
    """

    holding: Holding
    there: tuple[str, ...]
    opened_here: bool


def orphans(site: Testbed, desk: Desk) -> list[Orphan]:
    """One's own. What another user of the project made, and what tells no owner, is left out."""
    held = {holding.mark for holding in desk.ledger.holdings().values()}
    found: dict[str, list[tuple[str, Thing]]] = {}
    for kind, listed in things(site).items():
        for thing in desk.ask(listed):
            if thing.mark and thing.mark not in held:
                found.setdefault(thing.mark, []).append((kind, thing))
    owner, opened = desk.ask(site.user_id), desk.ledger.marks()
    return [
        Orphan(Holding("", mark, site.name, ""), tuple(f"{kind} {one.id}" for kind, one in there), mark in opened)
        for mark, there in found.items()
        if {one.owner for _, one in there} == {owner}
    ]


def chosen(found: Sequence[Orphan], marks: Sequence[str]) -> list[Orphan]:
    """Those of these marks; without any, those that this ledger opened. BadName for a mark that is no orphan's."""
    by_mark = {orphan.holding.mark: orphan for orphan in found}
    for mark in marks:
        if mark not in by_mark:
            raise BadName(f"MARK {mark!r}: no orphan of yours; allowed: {', '.join(by_mark) or 'none, there are none'}")
    return [by_mark[mark] for mark in marks] if marks else [orphan for orphan in found if orphan.opened_here]
