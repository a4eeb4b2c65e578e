import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from experiments.results.verdicts import Evaluation, Verdict
from tests.support.results.in_memory import run


class TestStoredVerdicts:
    """Verdict files that earlier versions of this program wrote, with earlier schema versions."""

    FOLDER = Path(__file__).parent / "stored"

    @pytest.mark.parametrize("version", [1, 2])
    def test_files_of_earlier_versions_are_read_with_the_current_terms(self, version):
        text = (self.FOLDER / f"verdict-{version}.json").read_text()
        read = Evaluation.model_validate_json(text)
        stored = json.loads(text)
        assert (stored["schema_version"], read.schema_version) == (version, 3)
        assert [one.id for one in read.verdicts] == [one["id"] for one in stored["verdicts"]]
        assert [one.value for one in read.verdicts] == [one["measured"] for one in stored["verdicts"]]
        assert {one.status for one in read.verdicts} == {"pass", "fail", "not evaluated"}
        assert {one.kind for one in read.verdicts} == {"outcome", "reference value", "claim"}
        assert Evaluation.model_validate_json(read.model_dump_json()) == read

    @pytest.mark.parametrize(
        ("change", "grade"), [({"basis": "predicted"}, "predicted"), ({"size": "tiny"}, "miniature"), ({}, None)]
    )
    def test_the_grade_of_a_verdict_of_version_2_follows_from_its_basis_and_size(self, change, grade):
        stored = json.loads((self.FOLDER / "verdict-2.json").read_text())
        stored["basis"] = change.get("basis", "measured")
        stored["run"]["size"] = change.get("size", "full")
        for verdict in Evaluation.model_validate(stored).verdicts:
            assert verdict.grade == (grade if verdict.status in ("pass", "fail") else None)

    def test_schema_version_1_has_a_status_named_broke_that_is_read_as_an_error(self):
        stored = (self.FOLDER / "verdict-1.json").read_text().replace('"did not hold"', '"broke"')
        assert Evaluation.model_validate_json(stored).exit_code == 3

    @pytest.mark.parametrize(
        "change",
        [
            {"schema_version": 4},
            {"schema_version": 3},
            {"verdicts": 5},
            {"verdicts": [5]},
            {"verdicts": [{"status": []}]},
        ],
    )
    @pytest.mark.parametrize("version", [1, 2])
    def test_files_that_have_no_verdicts_are_rejected(self, version, change):
        stored = json.loads((self.FOLDER / f"verdict-{version}.json").read_text())
        with pytest.raises(ValidationError):
            Evaluation.model_validate_json(json.dumps(stored | change))


def verdict(status="fail", **changes):
    return Verdict(id="a", kind="claim", says="So.", rows=(), status=status, expected="", value="", **changes)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("a has not run; the loss is not predicted", "rows have not run"),
        ("no GPU; a, b has not run", "rows have not run"),
        ("a has not run yet", "a has not run yet"),
        ("no GPU", "no GPU"),
    ],
)
def test_all_reasons_with_a_row_that_has_not_run_are_of_the_same_kind(reason, kind):
    assert verdict(reason=reason).kind_of_reason == kind


def test_only_failures_with_a_known_cause_are_known_failures():
    known = [verdict(known_failure="so"), verdict("pass", known_failure="so"), verdict()]
    found = Evaluation(run=run(), verdicts=tuple(known))
    assert (found.known_failures, found.exit_code) == (1, 1)
    assert Evaluation(run=run(), verdicts=tuple(known[:2])).exit_code == 0
