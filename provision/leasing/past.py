"""The cost of past leases, over a semester or longer, from the journal alone. No site is queried."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from provision.leasing.journal import Entry, Operation
from provision.words import number_with_noun

HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class PastLease:
    """A past or active lease. end: its deletion or its planned end, whichever was first; now if active.

    requested: when its creation was requested; None if the journal does not record it. su_per_hour: price of all its
    hosts together, None if the site reports no price.
    """

    id: str
    name: str
    site: str
    start: datetime
    end: datetime
    requested: datetime | None
    su_per_hour: float | None

    @property
    def time_before_request(self) -> timedelta:
        """The time from the lease's start to its request. A site rounds the start down to a full minute."""
        return max(self.requested - self.start, timedelta()) if self.requested else timedelta()

    @property
    def used_su(self) -> float | None:
        """The cost so far, service units; None if the price is unknown."""
        hours = max(self.end - self.start, timedelta()) / HOUR
        return None if self.su_per_hour is None else self.su_per_hour * hours


def past_leases(entries: Sequence[Entry], now: datetime) -> list[PastLease]:
    """Return every lease that was created according to the journal's entries, sorted by start."""
    requests: dict[str, Entry] = {}
    leases: dict[str, PastLease] = {}
    for entry in entries:
        data, id = entry.data, str(entry.data.get("id", ""))
        if (entry.event, entry.operation) == ("intent", Operation.CREATE_LEASE):
            requests[entry.tag] = entry
        elif entry.event == "done" and entry.operation in (Operation.CREATE_LEASE, Operation.EXTEND_LEASE):
            start, end = (datetime.fromisoformat(data[key]) for key in ("start", "end"))
            request = requests.get(entry.tag)
            requested = datetime.fromisoformat(request.at) if request else None
            price = _price_su_per_hour(request.data) if request else None
            leases[id] = PastLease(id, entry.name, entry.site, start, end, requested, price)
        elif (entry.event, entry.operation) == ("done", Operation.DELETE_LEASE) and id in leases:
            deleted = datetime.fromisoformat(entry.at)
            leases[id] = replace(leases[id], end=min(leases[id].end, deleted))
    until_now = (replace(lease, end=min(lease.end, now)) for lease in leases.values())
    return sorted(until_now, key=lambda lease: lease.start)


def total_cost_in_words(leases: Iterable[PastLease]) -> str:
    """Return in words the number of leases, their service units in total, and how many leases have no known price."""
    costs = [lease.used_su for lease in leases]
    unknown = costs.count(None)
    more = f", and {unknown} of unknown price" if unknown else ""
    used = sum(cost for cost in costs if cost is not None)
    return f"{number_with_noun(len(costs), 'lease')}: {used:.1f} service units{more}"


def _price_su_per_hour(slot: dict[str, object]) -> float | None:
    """Return the price of a requested time slot, service units an hour; None if unknown."""
    cost, start, end = (slot.get(key) for key in ("cost_su", "start", "end"))
    if not isinstance(cost, int | float):
        return None
    return cost / ((datetime.fromisoformat(str(end)) - datetime.fromisoformat(str(start))) / HOUR)
