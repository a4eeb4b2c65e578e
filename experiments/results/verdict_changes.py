"""Statements whose status differs between two evaluations."""

from collections.abc import Iterable

from experiments.results.schema import Record
from experiments.results.verdicts import Status, Verdict

SEVERITY: dict[Status | None, int] = {"pass": 0, "not evaluated": 1, None: 1, "fail": 2, "error": 3}


class VerdictChange(Record):
    """A statement whose status differs between two runs. Status None: the run's evaluation lacks the statement."""

    id: str
    says: str
    rows: tuple[str, ...]
    before: Status | None
    after: Status | None
    reason: str

    @property
    def worsening(self) -> int:
        """Return how much worse the second status is: positive if it is worse, negative if it is better."""
        return SEVERITY[self.after] - SEVERITY[self.before]


def verdict_changes(old_verdicts: Iterable[Verdict], new_verdicts: Iterable[Verdict]) -> tuple[VerdictChange, ...]:
    """Return the statements whose status differs: in the order of ``old_verdicts``, then those only in the new ones."""
    old, new = ({verdict.id: verdict for verdict in verdicts} for verdicts in (old_verdicts, new_verdicts))
    changes = []
    for id_, verdict in {**old, **new}.items():
        before, after = (verdicts[id_].status if id_ in verdicts else None for verdicts in (old, new))
        if before != after:
            reason = verdict.reason or (old[id_].reason if id_ in old else "")
            changes.append(
                VerdictChange(id=id_, says=verdict.says, rows=verdict.rows, before=before, after=after, reason=reason)
            )
    return tuple(changes)
