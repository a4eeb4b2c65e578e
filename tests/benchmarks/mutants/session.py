"""Test a random sample of mutants: session.py TASK, a JSON object. cosmic-ray makes them, in a copy of the project.

This process imports the libraries of the tests once; a mutant's tests run in a child process of it. Otherwise, imports
would take most of the time. TASK: ``packages``: the folder of cosmic-ray, searched after the project's own libraries.
``session``: the database of the sample and its results. ``parts``: modules and tests by name. ``sample``: how many
places are drawn. ``seed``: seed of the random choice. ``limit_s``: time limit of a mutant. ``at_most``: maximum number
of mutants in this run. ``again``: test survivors again. ``out``: file for the mutants that have a result, one per line
as JSON. The current folder must be the copy of the project.
"""

import contextlib
import importlib
import json
import os
import signal
import site
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

OPTIONS = ("-x", "-q", "-p", "no:cacheprovider")
UNION = "core/ReplaceBinaryOperator_BitOr_"
"""The operator of types as in ``int | None``, whose mutants change no behavior."""
TIMEOUT = -1
Part = dict[str, Any]


def main(task: dict[str, Any]) -> None:
    """Test the next mutants of the sample, then write those that have a result."""
    from cosmic_ray.work_db import WorkDB

    session = WorkDB(task["session"], WorkDB.Mode.create)
    parts = {str(path): part for part in task["parts"].values() for path in modules_of(part)}
    if not session.num_work_items:
        session.add_work_items(sample(sorted(parts), task["sample"], task["seed"]))
    results = dict(session.results)
    wanted = [item for item in session.work_items if _is_wanted(results.get(item.job_id), task["again"])]
    wanted = wanted[: task["at_most"]]
    used = [part for part in task["parts"].values() if any(parts[module_of(item)] is part for item in wanted)]
    for part in used:
        import_libraries(part["tests"])
        run_unmutated_code(part)
    for item in filter(can_be_made, wanted):
        results[item.job_id] = run_mutant(item, parts[module_of(item)], task["limit_s"])
        session.set_result(item.job_id, results[item.job_id])
        print(results[item.job_id].output, module_of(item), item.mutations[0].start_pos[0], flush=True)
    tested = [_record(item, results[item.job_id], parts) for item in session.work_items if item.job_id in results]
    Path(task["out"]).write_text("".join(f"{json.dumps(one)}\n" for one in tested))


def modules_of(part: Part) -> list[Path]:
    """Return the modules of a part that are mutated."""
    return [path for pattern in part["modules"] for path in Path().glob(pattern) if path.name != "__init__.py"]


def sample(modules: list[str], number: int, seed: int) -> list[Any]:
    """Draw ``number`` places of the code with equal chances, and one mutant of each place.

    Drawing among all mutants would prefer operators: an operator has a dozen mutants, a name has few.
    """
    from cosmic_ray.commands.init import _all_work_items

    places = defaultdict(list)
    for item in _all_work_items([Path(module) for module in modules], {}):
        (mutation,) = item.mutations
        if not mutation.operator_name.startswith(UNION):
            places[str(mutation.module_path), mutation.start_pos].append(item)
    print(f"{sum(map(len, places.values()))} mutants at {len(places)} places", flush=True)
    draw = Random(seed)
    return [draw.choice(places[place]) for place in draw.sample(sorted(places), min(number, len(places)))]


def can_be_made(item: Any) -> bool:
    """Return whether cosmic-ray can make the mutant: it fails to replace an exception with a dotted name in a tuple."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    (mutation,) = item.mutations
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    try:
        mutate_code(Path(mutation.module_path).read_text(), operator, mutation.occurrence)
    except AttributeError:
        return False
    return True


def run_mutant(item: Any, part: Part, limit_s: float) -> Any:
    """Run the tests on a mutant; return cosmic-ray's result, whose output is found, timeout or survived."""
    from cosmic_ray.mutating import _make_diff, use_mutation
    from cosmic_ray.plugins import get_operator
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

    (mutation,) = item.mutations
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    with use_mutation(mutation.module_path, operator, mutation.occurrence) as (before, after):
        code = in_child(lambda: run_tests(module_of(item), part["tests"]), limit_s)
    outcome = {0: "survived", TIMEOUT: "timeout"}.get(code, "found")
    return WorkResult(
        worker_outcome=WorkerOutcome.NORMAL,
        output=outcome,
        test_outcome=TestOutcome.SURVIVED if outcome == "survived" else TestOutcome.KILLED,
        diff="\n".join(_make_diff(before, after, mutation.module_path)),
    )


def run_tests(module: str, tests: list[str]) -> int:
    """Run the tests until the first failure; return 0 if none fails.

    First run the files among ``tests``, then the module's own test file, if any, and last the folders.
    """
    name = f"test_{Path(module).stem}.py"
    files = [test for test in tests if test.endswith(".py") and not test.startswith("-")]
    own = [str(path) for folder in tests for path in Path(folder).rglob(name)]
    return int(pytest.main([*OPTIONS, *files, *own, *tests]))


def run_unmutated_code(part: Part) -> None:
    """Run a part's tests on the unchanged code, which also compiles them; exit if they fail."""
    os.environ["PYTHONDONTWRITEBYTECODE"] = ""
    code = in_child(lambda: int(pytest.main([*OPTIONS, *part["tests"]])), limit_s=3600, output="unchanged.log")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    if code:
        sys.exit(f"{part['name']}: the tests fail on the unchanged code; see unchanged.log in {Path.cwd()}")


def import_libraries(tests: list[str]) -> None:
    """Import the libraries that these tests import, but no module of the project."""
    listing = Path("libraries.txt")

    def collect() -> int:
        pytest.main(["--collect-only", *OPTIONS, *tests])
        installed = [
            name for name, module in sys.modules.items() if "site-packages" in str(getattr(module, "__file__", ""))
        ]
        listing.write_text("\n".join(installed))
        return 0

    in_child(collect, limit_s=3600)
    for name in listing.read_text().split():
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def in_child(action: Callable[[], int], limit_s: float, output: str = os.devnull) -> int:
    """Return the action's result from a child process with its own group, which ends at the limit."""
    child = os.fork()
    if child == 0:
        os.setsid()
        stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(stream, number)
        sys.dont_write_bytecode = bool(os.environ["PYTHONDONTWRITEBYTECODE"])
        os._exit(action())
    end = time.monotonic() + limit_s
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if done == (0, 0):
        os.waitpid(child, 0)
        return TIMEOUT
    return os.waitstatus_to_exitcode(done[1]) or 0


def module_of(item: Any) -> str:
    return str(item.mutations[0].module_path)


def _is_wanted(result: Any, again: bool) -> bool:
    return result is None or (again and not result.is_killed)


def _record(item: Any, result: Any, parts: dict[str, Part]) -> dict[str, Any]:
    (mutation,) = item.mutations
    lines = (result.diff or "").splitlines()
    return {
        "part": parts[module_of(item)]["name"],
        "module": module_of(item),
        "line": mutation.start_pos[0],
        "in": mutation.definition_name,
        "operator": mutation.operator_name.removeprefix("core/"),
        "change": [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")],
        "outcome": result.output,
    }


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    site.addsitedir(given["packages"])
    main(given)
