"""The chain with a client that is killed by SIGKILL anywhere: the same command resumes, and nothing is done twice."""

from pathlib import Path

import pytest

from experiments.suites.suite import suite_named
from tests.testbed.chain.cli_user import CliUser, Command
from tests.testbed.chain.client import ROWS, SUITES

pytestmark = pytest.mark.timeout(3600)


def names_of_runs(cli_user: CliUser) -> list[str]:
    """Return the names of the reproduction's runs."""
    return [path.name for path in cli_user.results.glob("*-chameleon")]


def test_every_row_fits_although_the_client_was_killed(cli_user: CliUser, last_client: Command) -> None:
    outcomes = {row: outcome for run in names_of_runs(cli_user) for row, outcome in cli_user.outcomes(run).items()}
    assert outcomes == dict.fromkeys(ROWS, "fits"), last_client.output


def test_every_row_ran_once_although_the_client_was_killed(cli_user: CliUser, last_client: Command) -> None:
    assert sorted(row for run in names_of_runs(cli_user) for row in cli_user.started_rows(run)) == sorted(ROWS)


def test_after_killed_clients_there_is_one_lease_one_server_and_one_address(
    cli_user: CliUser, last_client: Command
) -> None:
    site = cli_user.cloud.site
    assert [len(found) for found in (site.leases(), site.servers(), site.addresses())] == [1, 1, 1]


def test_the_run_of_a_killed_client_is_evaluated_and_reported(cli_user: CliUser, last_client: Command) -> None:
    reports = [line.removeprefix("report: ") for line in last_client.output.splitlines() if line.startswith("report: ")]
    pages = [Path(report).read_text() for report in dict.fromkeys(reports)]
    assert [suite_named(suite).title in page for suite, page in zip(SUITES, pages, strict=True)] == [True, True]
