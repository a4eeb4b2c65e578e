"""Convert the check of a bundle to Gradescope's results.json, with points and reasons."""

from typing import Any

from experiments.bundle.check import BundleCheck


def gradescope_results(bundle_check: BundleCheck) -> dict[str, Any]:
    """Return the score and the tests of one bundle. An accepted row gives one point, a rejected bundle none."""
    reasons = (
        "\n".join(bundle_check.problems) or "rows and settings are right, values are consistent, nothing is copied"
    )
    genuine = _gradescope_test("The bundle is accepted", 0, reasons, bundle_check.accepted)
    rows = [
        _gradescope_test(row, 1, missing or "has a result", bundle_check.accepted and not missing)
        for row, missing in bundle_check.rows.items()
    ]
    statements = bundle_check.evaluation.verdicts if bundle_check.evaluation else ()
    lines = [f"{one.status}: {one.says} {one.value}".strip() for one in statements if one.status != "not evaluated"]
    return {
        "score": sum(test["score"] for test in rows),
        "output": "\n".join(lines) or reasons,
        "tests": [genuine, *rows],
    }


def _gradescope_test(name: str, most: int, output: str, passed: bool) -> dict[str, Any]:
    status = "passed" if passed else "failed"
    return {"name": name, "score": most if passed else 0, "max_score": most, "output": output, "status": status}
