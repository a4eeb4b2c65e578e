"""Convert the check of a bundle to Gradescope's results.json, with points and reasons."""

from typing import Any

from experiments.bundle.check import BundleCheck


def gradescope_results(bundle_check: BundleCheck) -> dict[str, Any]:
    """Return the score and the tests of one bundle. An accepted row gives one point, a rejected bundle none."""
    reasons = (
        "\n".join(bundle_check.problems) or "rows and settings are right, values are consistent, nothing is copied"
    )
    bundle_test = _gradescope_test("The bundle is accepted", 0, reasons, bundle_check.is_accepted)
    rows = [
        _gradescope_test(row, 1, no_point_reason or "has a result", bundle_check.is_accepted and not no_point_reason)
        for row, no_point_reason in bundle_check.no_point_reasons.items()
    ]
    statements = bundle_check.evaluation.verdicts if bundle_check.evaluation else ()
    lines = [f"{one.status}: {one.says} {one.value}".strip() for one in statements if one.status != "not evaluated"]
    return {
        "score": sum(test["score"] for test in rows),
        "output": "\n".join(lines) or reasons,
        "tests": [bundle_test, *rows],
    }


def _gradescope_test(name: str, max_points: int, output: str, passed: bool) -> dict[str, Any]:
    status = "passed" if passed else "failed"
    return {
        "name": name,
        "score": max_points if passed else 0,
        "max_score": max_points,
        "output": output,
        "status": status,
    }
