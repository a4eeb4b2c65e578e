"""The chain with a client that is killed by SIGKILL anywhere: the same command resumes, and nothing is done twice."""

from pathlib import Path

import pytest

from experiments.suites.suite import suite_named
from tests.testbed.chain.client import ROWS, SUITES
from tests.testbed.chain.person import Command, Person

pytestmark = pytest.mark.timeout(3600)


def runs(person: Person) -> list[str]:
    """Return the names of the reproduction's runs."""
    return [path.name for path in person.results.glob("*-chameleon")]


def test_every_row_has_its_result(person: Person, last: Command) -> None:
    outcomes = {row: outcome for run in runs(person) for row, outcome in person.outcomes(run).items()}
    assert outcomes == dict.fromkeys(ROWS, "fits"), last.output


def test_every_row_ran_once(person: Person, last: Command) -> None:
    assert sorted(row for run in runs(person) for row in person.started_rows(run)) == sorted(ROWS)


def test_the_testbed_has_one_resource_of_each_kind(person: Person, last: Command) -> None:
    site = person.stage.site
    assert [len(found) for found in (site.leases(), site.servers(), site.addresses())] == [1, 1, 1]


def test_the_run_is_evaluated_and_reported(person: Person, last: Command) -> None:
    reports = [line.removeprefix("report: ") for line in last.output.splitlines() if line.startswith("report: ")]
    pages = [Path(report).read_text() for report in dict.fromkeys(reports)]
    assert [suite_named(suite).title in page for suite, page in zip(SUITES, pages, strict=True)] == [True, True]
