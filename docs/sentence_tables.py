"""Tables of the labs' sentences: each with the statements that check it, and the best stored evidence for them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import experiments
from experiments.results.verdicts import GRADES, Evaluation, Verdict
from experiments.suites.sentences import sentences_of
from experiments.suites.suite import Suite

EVIDENCE = Path(experiments.__file__).parent / "evidence"
COLUMN_NAMES = ("the lab says", "place", "statement", "status", "grade", "value or reason")
INTRODUCTION = (
    "This table lists the results that the lab states, in our own words, and the statements that check them. For each "
    "statement, it shows the best evidence in `experiments/evidence`. The [grade of evidence]"
    "(../../concepts/statements.md#how-sure-is-a-verdict) is *measured* (on a GPU of the stated model), *emulated* "
    "(measured on a GPU that emulates the card), or *predicted* (at full size, without a GPU)."
)


def sentence_rows(suite: Suite) -> Iterator[tuple[str, ...]]:
    """Yield the cells of a table row for each statement of each sentence, in the order of the lab."""
    best = best_verdicts(stored_evaluations(suite))
    for sentence in sentences_of(suite):
        for number, statement in enumerate(sentence.statements):
            sentence_cells = (sentence.says, sentence.at) if number == 0 else ("", "")
            yield (*sentence_cells, *_verdict_cells(statement, best.get(statement)))


def stored_evaluations(suite: Suite) -> list[tuple[str, Evaluation]]:
    """Return each stored evaluation of a suite with its card, in the order of the suite's cards."""
    paths = sorted(EVIDENCE.glob(f"{suite.suite}-*/verdict.json"))
    evaluations = [Evaluation.model_validate_json(path.read_bytes()) for path in paths]
    by_card = [(each.run.card, each) for each in evaluations if each.run.card in suite.cards]
    return sorted(by_card, key=lambda item: suite.cards.index(item[0]))


def best_verdicts(evaluations: Iterable[tuple[str, Evaluation]]) -> dict[str, tuple[str, Verdict]]:
    """Return by statement id the card and the verdict with the best evidence; of equally good verdicts, the first."""
    best: dict[str, tuple[str, Verdict]] = {}
    for card, evaluation in evaluations:
        for verdict in evaluation.verdicts:
            if verdict.id not in best or _evidence_rank(verdict) < _evidence_rank(best[verdict.id][1]):
                best[verdict.id] = (card, verdict)
    return best


def _evidence_rank(verdict: Verdict) -> tuple[int, bool]:
    """Return a sort key, best evidence first: by grade, then verdicts with a value before those without."""
    return GRADES.index(verdict.grade) if verdict.grade else len(GRADES), not verdict.value


def _verdict_cells(statement: str, card_and_verdict: tuple[str, Verdict] | None) -> tuple[str, str, str, str]:
    if card_and_verdict is None:
        return f"`{statement}`", "not evaluated", "", "no stored run evaluates it"
    card, verdict = card_and_verdict
    grade = f"{verdict.grade}, {card}" if verdict.grade else ""
    return f"`{statement}`", verdict.status, grade, verdict.value if verdict.grade else verdict.reason
