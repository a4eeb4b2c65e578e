"""Pages of the labs' sentences: each with its statements, and the best evidence that is stored for them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import experiments
from experiments.results.verdicts import GRADES, Evaluation, Verdict
from experiments.suites.sentences import sentences_of
from experiments.suites.suite import Suite

EVIDENCE = Path(experiments.__file__).parent / "evidence"
HEADS = ("the lab says", "place", "statement", "status", "grade", "value or reason")
TEXT = (
    "What the lab says would come of its experiments, in our words, the statements that check it, and the best "
    "evidence that `experiments/evidence` has for each: *measured* on the card itself, *emulated* (measured on a GPU "
    "that emulates the card), or *predicted* at full size without a GPU. [What a grade means]"
    "(../../concepts/statements.md#how-sure-is-it)."
)


def sentence_rows(suite: Suite) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each statement of each sentence, in the order of the lab."""
    best = best_verdicts(stored_evaluations(suite))
    for sentence in sentences_of(suite):
        for number, statement in enumerate(sentence.statements):
            first = (sentence.says, sentence.at) if number == 0 else ("", "")
            yield (*first, *_cells(statement, best.get(statement)))


def stored_evaluations(suite: Suite) -> list[tuple[str, Evaluation]]:
    """Return the stored evaluations of a suite's runs by card, in the order of the suite's cards."""
    paths = sorted(EVIDENCE.glob(f"{suite.suite}-*/verdict.json"))
    found = [Evaluation.model_validate_json(path.read_bytes()) for path in paths]
    known = [(one.run.card, one) for one in found if one.run.card in suite.cards]
    return sorted(known, key=lambda item: suite.cards.index(item[0]))


def best_verdicts(evaluations: Iterable[tuple[str, Evaluation]]) -> dict[str, tuple[str, Verdict]]:
    """Return the verdict with the best grade of each statement, with its card; of equal grades the first."""
    best: dict[str, tuple[str, Verdict]] = {}
    for card, evaluation in evaluations:
        for verdict in evaluation.verdicts:
            if verdict.id not in best or _rank(verdict) < _rank(best[verdict.id][1]):
                best[verdict.id] = (card, verdict)
    return best


def _rank(verdict: Verdict) -> tuple[int, bool]:
    """Return an order: the grade, then those with a value, whose reason says more than that a row has not run."""
    return GRADES.index(verdict.grade) if verdict.grade else len(GRADES), not verdict.value


def _cells(statement: str, found: tuple[str, Verdict] | None) -> tuple[str, str, str, str]:
    if found is None:
        return f"`{statement}`", "not evaluated", "", "no stored run has it"
    card, verdict = found
    grade = f"{verdict.grade}, {card}" if verdict.grade else ""
    return f"`{statement}`", verdict.status, grade, verdict.value if verdict.grade else verdict.reason
