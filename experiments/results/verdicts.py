"""The schema of verdict.json: every statement with its status, and the grade of the evidence that it rests on."""

from collections import Counter
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from experiments.results.run_folder import Run
from experiments.results.schema import Record

VERDICT_SCHEMA_VERSION: Literal[3] = 3
VERSION_1_KINDS = {"figure": "reference value"}
VERSION_1_STATUSES = {"held": "pass", "did not hold": "fail", "not judged": "not evaluated", "broke": "error"}

Status = Literal["pass", "fail", "not evaluated", "error"]
Grade = Literal["measured", "emulated", "predicted", "miniature"]
GRADES: tuple[Grade, ...] = get_args(Grade)
"""Best first: measured on a GPU of the stated model or one that emulates this model; predicted; on a tiny model."""


NOT_RUN = "has not run"
"""Last words of the reason why a statement about a row without a result was not evaluated."""


class Verdict(Record):
    """One statement with its status."""

    id: str = Field(description="id of the claim; for a reference value ROW/QUANTITY, for an outcome ROW/outcome")
    kind: Literal["outcome", "reference value", "claim"] = Field(description="kind of the statement")
    says: str = Field(description="the statement in a sentence")
    rows: tuple[str, ...] = Field(description="ids of the statement's rows")
    status: Status = Field(description="whether the statement passes")
    grade: Grade | None = Field(
        default=None,
        description="how the evidence was obtained, from measured (the best) to miniature; not a student's mark; "
        "None: the status is neither pass nor fail, or the file has schema version 1 or 2 and records no grade",
    )
    expected: str = Field(description="values for which the statement passes")
    value: str = Field(description="measured or predicted value")
    missed: str = Field(default="", description="by how much a failed value is outside of its bounds; else empty")
    reason: str = Field(default="", description="reason for a failure or a missing evaluation, or the error")
    known_failure: str = Field(default="", description="cause that the suite states for a known failure; else empty")

    @property
    def kind_of_reason(self) -> str:
        """Return 'rows have not run' if this is the reason, so that such verdicts form one group; else the reason."""
        has_not_run = any(part.endswith(NOT_RUN) for part in self.reason.split("; "))
        return "rows have not run" if has_not_run else self.reason


class Contradiction(Record):
    """A statement that a measurement and a prediction evaluate differently."""

    id: str = Field(description="id of the statement")
    says: str = Field(description="the statement in a sentence")
    measured: Verdict = Field(description="verdict from the measurement")
    predicted: Verdict = Field(description="verdict from the prediction")


class Evaluation(Record):
    """verdict.json: every verdict of one run, each with the best grade of evidence that can decide it.

    Also reads schema versions 1 and 2, which had other names and one basis for all verdicts.
    """

    schema_version: Literal[3] = Field(default=VERDICT_SCHEMA_VERSION, description="version of this schema")
    run: Run = Field(description="options and origin of the run")
    verdicts: tuple[Verdict, ...] = Field(description="one per statement")
    scale: str = Field(default="", description="'scaled to 12 GB' for smaller twins of the lab's rows; else empty")
    contradictions: tuple[Contradiction, ...] = Field(
        default=(), description="predictions that disagree with a measurement"
    )

    @model_validator(mode="before")
    @classmethod
    def _convert_earlier_versions(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("schema_version") == 1:
            data = _convert_version_1(data)
        if isinstance(data, dict) and data.get("schema_version") == 2:
            data = _convert_version_2(data)
        return data

    def count(self, status: Status) -> int:
        return sum(verdict.status == status for verdict in self.verdicts)

    def passed_by_grade(self) -> dict[Grade, int]:
        """Return the number of statements that pass, by grade, the best grade first."""
        counts = Counter(verdict.grade for verdict in self.verdicts if verdict.status == "pass")
        return {grade: counts[grade] for grade in GRADES if counts[grade]}

    @property
    def exit_code(self) -> int:
        """Return 3 if a statement has an error, else 1 if a statement fails that is not known to fail, else 0."""
        return 3 if self.count("error") else 1 if self.count("fail") > self.known_failures else 0

    @property
    def known_failures(self) -> int:
        """Return the number of statements that fail and are known to fail."""
        return sum(verdict.status == "fail" and bool(verdict.known_failure) for verdict in self.verdicts)


def _convert_version_1(data: dict[str, Any]) -> dict[str, Any]:
    """Convert the data of schema version 1 to version 2."""
    unchanged = {key: value for key, value in data.items() if key != "grounds"}
    return _change_verdicts(
        {**unchanged, "schema_version": 2, "basis": data.get("grounds", "measured")}, _rename_version_1
    )


def _rename_version_1(verdict: dict[str, Any]) -> dict[str, Any]:
    status, kind = verdict.get("status"), verdict.get("kind")
    renamed = {"status": VERSION_1_STATUSES.get(str(status), status), "kind": VERSION_1_KINDS.get(str(kind), kind)}
    return {**verdict, **renamed}


def _convert_version_2(data: dict[str, Any]) -> dict[str, Any]:
    """Convert the data of schema version 2 to version 3: add the grade of each verdict where it can be inferred."""
    run, basis = data.get("run"), data.get("basis", "measured")
    tiny = isinstance(run, dict) and run.get("size") == "tiny"
    grade = "predicted" if basis == "predicted" else "miniature" if tiny else None

    def add_grade(verdict: dict[str, Any]) -> dict[str, Any]:
        renamed = {("value" if key == "measured" else key): value for key, value in verdict.items()}
        return {**renamed, "grade": grade if verdict.get("status") in ("pass", "fail") else None}

    unchanged = {key: value for key, value in data.items() if key != "basis"}
    return _change_verdicts({**unchanged, "schema_version": VERDICT_SCHEMA_VERSION}, add_grade)


def _change_verdicts(data: dict[str, Any], change: Any) -> dict[str, Any]:
    """Return ``data`` with ``change`` applied to each verdict. Invalid entries stay; the schema rejects them later."""
    verdicts = data.get("verdicts")
    if not isinstance(verdicts, list):
        return data
    return {**data, "verdicts": [change(one) if isinstance(one, dict) else one for one in verdicts]}
