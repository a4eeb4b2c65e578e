"""The labs' sentences about results of experiments, paraphrased, each with the statements that check it."""

from pydantic import Field

from experiments.errors import unknown_name_error
from experiments.suites.suite import Suite
from experiments.suites.yaml_schema import LABS, StrictModel, read_yaml, validate

SENTENCES = LABS / "sentences"


class Sentence(StrictModel):
    """One sentence of a lab, paraphrased. at: its place in the lab. statements: ids of the statements that check it."""

    at: str
    says: str
    statements: tuple[str, ...] = Field(min_length=1)


def sentences_of(suite: Suite) -> tuple[Sentence, ...]:
    """Return the sentences of the suite's lab, in the lab's order.

    Raises InputError for a sentence without a statement, and for a statement that the suite does not have.
    """
    path = SENTENCES / f"{suite.suite}.yaml"
    known = statement_ids(suite)
    sentences = []
    for number, entry in enumerate(read_yaml(path), 1):
        sentence = validate(Sentence, entry, f"sentences/{path.name}: sentence {number}")
        for statement in sentence.statements:
            if statement not in known:
                raise unknown_name_error("statement", statement, known, f"sentences/{path.name}: sentence {number}")
        sentences.append(sentence)
    return tuple(sentences)


def statement_ids(suite: Suite) -> tuple[str, ...]:
    """Return the ids of all statements of a suite: outcomes and reference values of its rows, and claims."""
    outcomes = [f"{row.id}/outcome" for row in suite.rows if row.expect.outcome]
    values = [f"{row.id}/{value.quantity}" for row in suite.rows for value in row.expect.reference_values]
    return (*outcomes, *values, *(claim.verdict_id for claim in suite.claims))
