"""The chain with a client that is killed -9 wherever it is: the same command goes on, and nothing is done twice."""

import re
from pathlib import Path

import pytest

from experiments.recipe import suite_named
from tests.testbed.chain.client import ROWS
from tests.testbed.chain.person import Command, Person

pytestmark = pytest.mark.timeout(3600)


def test_every_row_has_its_result(person: Person, last: Command) -> None:
    runs = [path.name for path in person.results.iterdir() if not path.is_symlink()]
    outcomes = {row: outcome for run in runs for row, outcome in person.outcomes(run).items()}
    assert outcomes == dict.fromkeys(ROWS, "fits"), last.said


def test_every_row_ran_once(person: Person, last: Command) -> None:
    runs = [path.name for path in person.results.iterdir() if not path.is_symlink()]
    assert sorted(row for run in runs for row in person.starts(run)) == sorted(ROWS)


def test_there_is_one_of_each_at_the_testbed(person: Person, last: Command) -> None:
    site = person.stage.site
    assert [len(found) for found in (site.leases(), site.servers(), site.addresses())] == [1, 1, 1]


def test_it_is_judged_and_reported(person: Person, last: Command) -> None:
    reports = [Path(line.removeprefix("report: ")) for line in last.said.splitlines() if line.startswith("report: ")]
    assert len(reports) == 2
    assert all("<html" in report.read_text() for report in reports)
    title = suite_named("single_gpu_blip2").title
    assert re.search(re.escape(title), reports[0].read_text())
