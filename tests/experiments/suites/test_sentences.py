"""Each sentence of a lab has a statement, and each statement a sentence."""

import pytest

from experiments.errors import InputError
from experiments.suites import sentences as listed
from experiments.suites.sentences import SENTENCES, sentences_of, statement_ids
from experiments.suites.suite import suite_named, suite_names

SUITES = [suite_named(name) for name in suite_names()]


def test_every_suite_has_its_sentences() -> None:
    assert {path.stem for path in SENTENCES.iterdir()} == set(suite_names())


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.suite)
def test_every_sentence_has_statements_and_every_statement_a_sentence(suite) -> None:
    sentences = sentences_of(suite)
    assert all(sentence.statements and sentence.at and sentence.says.endswith(".") for sentence in sentences)
    named = [statement for sentence in sentences for statement in sentence.statements]
    assert set(named) == set(statement_ids(suite))
    assert len(named) == len(set(named)), "a statement checks one sentence"


@pytest.mark.parametrize(
    ("statements", "problem"),
    [("[]", "statements"), ("[claim/made-up]", "statement 'claim/made-up'"), ("[outcome]", "statement 'outcome'")],
)
def test_a_sentence_of_a_lab_with_no_or_an_unknown_statement_is_rejected(
    tmp_path, monkeypatch, statements: str, problem: str
) -> None:
    suite = SUITES[0]
    (tmp_path / f"{suite.suite}.yaml").write_text(f"- {{at: Somewhere, says: It is so., statements: {statements}}}\n")
    monkeypatch.setattr(listed, "SENTENCES", tmp_path)
    with pytest.raises(InputError, match=problem) as raised:
        sentences_of(suite)
    assert f"sentences/{suite.suite}.yaml: sentence 1" in str(raised.value)
