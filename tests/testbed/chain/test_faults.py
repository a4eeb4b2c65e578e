"""Faults while rows run on the leased node: each run ends with an error, and the next one completes it."""

import re
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from provision.ssh.login import USER
from tests.support.processes.waiting import wait_for
from tests.testbed.chain.cli_user import REMOTE_RUNS, CliUser, Command
from tests.testbed.node.node import Node

OUTAGE_S = 60
EXIT_ERROR = 3
ROWS = ("reduced-batch",)

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(autouse=True)
def end_everything_after(cli_user: CliUser) -> Iterator[None]:
    """End all commands and jobs after each test."""
    yield
    cli_user.node.run("systemctl", "start", "docker.socket", "docker")
    cli_user.end_all_commands()
    wait_for(lambda: not cli_user.containers())


def running(cli_user: CliUser, run_id: str) -> Command:
    """Start a run and wait until its row has a container."""
    command = cli_user.start_run(run_id, *ROWS)
    command.until(f"{ROWS[-1]}: starts")
    wait_for(lambda: len(cli_user.containers()) == len(ROWS))
    return command


def reboot_node(node: Node) -> None:
    """Reboot the node, and report it to Slurm: Slurm reads the kernel's uptime, which is that of this machine."""

    def is_up() -> str:
        with suppress(RuntimeError):
            return node.run("sinfo", "--noheader")
        return ""

    node.reboot()
    wait_for(is_up)
    node.run("scontrol", "update", f"NodeName={node.name}", "State=DOWN", "Reason=Node unexpectedly rebooted")


def all_fit(cli_user: CliUser, run_id: str) -> bool:
    return cli_user.outcomes(run_id) == dict.fromkeys(ROWS, "fits")


def test_a_minute_without_a_connection_loses_no_row(cli_user: CliUser, last_client: Command) -> None:
    command = running(cli_user, "cut")
    cli_user.node_proxy.set_fault("gone")
    time.sleep(OUTAGE_S)
    cli_user.node_proxy.repair()
    assert command.end() in (0, 1), command.output
    assert all_fit(cli_user, "cut"), command.output
    assert cli_user.started_rows("cut") == sorted(ROWS)


def test_a_slow_connection_causes_no_error(cli_user: CliUser, last_client: Command) -> None:
    cli_user.node_proxy.set_fault("slow")
    try:
        command = running(cli_user, "slow")
        assert command.end() in (0, 1), command.output
    finally:
        cli_user.node_proxy.repair()
    assert all_fit(cli_user, "slow"), command.output


def test_a_row_that_a_reboot_interrupts_is_an_error_with_this_reason_and_runs_again(
    cli_user: CliUser, last_client: Command
) -> None:
    command = running(cli_user, "reboot")
    reboot_node(cli_user.node)
    assert command.end() == EXIT_ERROR, command.output
    assert cli_user.outcomes("reboot") == dict.fromkeys(ROWS, "error"), command.output
    assert re.search(r"reduced-batch: error.*job ended as", command.output)
    again = cli_user.start_run("reboot", *ROWS)
    assert again.end() in (0, 1), again.output
    assert all_fit(cli_user, "reboot"), again.output
    assert cli_user.started_rows("reboot") == sorted(2 * ROWS)


def test_rows_fail_while_docker_is_stopped_and_run_again_afterwards(cli_user: CliUser, last_client: Command) -> None:
    command = running(cli_user, "docker")
    cli_user.node.run("systemctl", "stop", "docker.socket", "docker")
    assert command.end() == EXIT_ERROR, command.output
    assert cli_user.outcomes("docker") == dict.fromkeys(ROWS, "error"), command.output
    rejected = cli_user.start_run("docker", *ROWS)
    assert rejected.end() == 2
    assert re.search(r"^testbed: .*[Cc]annot connect to the Docker daemon", rejected.output, re.MULTILINE), (
        rejected.output
    )
    cli_user.node.run("systemctl", "start", "docker.socket", "docker")
    again = cli_user.start_run("docker", *ROWS)
    assert again.end() in (0, 1), again.output
    assert all_fit(cli_user, "docker"), again.output


@pytest.fixture
def small_disk(cli_user: CliUser) -> Iterator[str]:
    """Mount a file system of 16 MiB as the folder of the run "full" on the node."""
    folder = f"{REMOTE_RUNS}/full"
    cli_user.node.run("install", "-d", "-o", USER, "-g", USER, folder)
    cli_user.node.run("mount", "-t", "tmpfs", "-o", f"size=16m,uid={USER},gid={USER}", "tmpfs", folder)
    yield folder
    cli_user.node.run("umount", "--lazy", folder)


def test_rows_on_a_full_disk_are_errors_until_space_is_freed(
    cli_user: CliUser, last_client: Command, small_disk: str
) -> None:
    command = running(cli_user, "full")
    cli_user.node.run("sh", "-c", f"cat /dev/zero > {small_disk}/filler || true")
    assert command.end() == EXIT_ERROR, command.output
    assert "error" in cli_user.outcomes("full").values(), command.output
    cli_user.node.run("rm", f"{small_disk}/filler")
    again = cli_user.start_run("full", *ROWS)
    assert again.end() in (0, 1), again.output
    assert all_fit(cli_user, "full"), again.output
