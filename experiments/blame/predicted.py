"""Predict rows in this environment, for a step of the bisection: python -m experiments.blame.predicted ARGUMENTS_JSON.

ARGUMENTS_JSON has the arguments of ``main``. The program prints the observation as JSON. A row that cannot be traced
has the outcome error.
"""

import json
import sys
from pathlib import Path

from experiments.blame.observation import observation_of
from experiments.prediction.as_result import convert_to_result
from experiments.prediction.predict import predict, suite_row_spec
from experiments.results.evaluate import evaluate
from experiments.results.run_folder import Run
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import suite_named
from experiments.system.files import cache_folder


def main(suite_name: str, rows: list[str], card: str) -> None:
    """Predict the rows at full size and print the observation."""
    suite = suite_named(suite_name)
    errors: dict[str, str] = {}
    specs = [suite_row_spec(suite, suite.row(row), card) for row in rows]

    def record_error(spec: RowSpec, problem: Exception) -> None:
        errors[spec.row] = str(problem)

    predictions = predict(specs, cache_folder(), on_failure=record_error, store=Path(sys.prefix) / "predictions")
    results = {one.spec.row: convert_to_result(one) for one in predictions}
    print(observation_of(results, evaluate(suite, _describe_run(specs), results), errors).model_dump_json())


def _describe_run(specs: list[RowSpec]) -> Run:
    shared = specs[0].model_dump(include={"suite", "recipe_version", "card", "size", "weights", "data", "input"})
    rows = tuple(spec.row for spec in specs)
    return Run(**shared, run_id="", site="local", rows=rows, length="verdict", command="", started_at="", host="")


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
