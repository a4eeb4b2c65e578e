"""Faults while rows run on the leased node: each run ends with an error, and the next one completes it."""

import re
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from provision.ssh.login import USER
from tests.support.processes.waiting import wait_for
from tests.testbed.chain.person import REMOTE_RUNS, Command, Person
from tests.testbed.node.node import Node

OUTAGE_S = 60
EXIT_ERROR = 3
ROWS = ("reduced-batch",)

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(autouse=True)
def ended(person: Person) -> Iterator[None]:
    """End all commands and jobs after each test."""
    yield
    person.node.run("systemctl", "start", "docker.socket", "docker")
    person.ends()
    wait_for(lambda: not person.containers())


def running(person: Person, run_id: str) -> Command:
    """Start a run and wait until its row has a container."""
    command = person.runs(run_id, *ROWS)
    command.until(f"{ROWS[-1]}: starts")
    wait_for(lambda: len(person.containers()) == len(ROWS))
    return command


def rebooted(node: Node) -> None:
    """Reboot the node, and report it to Slurm: Slurm reads the kernel's uptime, which is that of this machine."""

    def is_up() -> str:
        with suppress(RuntimeError):
            return node.run("sinfo", "--noheader")
        return ""

    node.reboot()
    wait_for(is_up)
    node.run("scontrol", "update", f"NodeName={node.name}", "State=DOWN", "Reason=Node unexpectedly rebooted")


def all_fit(person: Person, run_id: str) -> bool:
    return person.outcomes(run_id) == dict.fromkeys(ROWS, "fits")


def test_a_minute_without_a_connection_loses_no_row(person: Person, last: Command) -> None:
    command = running(person, "cut")
    person.line.shut("gone")
    time.sleep(OUTAGE_S)
    person.line.repair()
    assert command.end() in (0, 1), command.output
    assert all_fit(person, "cut"), command.output
    assert person.started_rows("cut") == sorted(ROWS)


def test_a_slow_connection_causes_no_error(person: Person, last: Command) -> None:
    person.line.shut("slow")
    try:
        command = running(person, "slow")
        assert command.end() in (0, 1), command.output
    finally:
        person.line.repair()
    assert all_fit(person, "slow"), command.output


def test_a_reboot_during_a_row_is_an_error_with_this_reason_and_the_row_runs_again(
    person: Person, last: Command
) -> None:
    command = running(person, "reboot")
    rebooted(person.node)
    assert command.end() == EXIT_ERROR, command.output
    assert person.outcomes("reboot") == dict.fromkeys(ROWS, "error"), command.output
    assert re.search(r"reduced-batch: error.*job ended as", command.output)
    again = person.runs("reboot", *ROWS)
    assert again.end() in (0, 1), again.output
    assert all_fit(person, "reboot"), again.output
    assert person.started_rows("reboot") == sorted(2 * ROWS)


def test_rows_fail_while_docker_is_stopped_and_run_again_afterwards(person: Person, last: Command) -> None:
    command = running(person, "docker")
    person.node.run("systemctl", "stop", "docker.socket", "docker")
    assert command.end() == EXIT_ERROR, command.output
    assert person.outcomes("docker") == dict.fromkeys(ROWS, "error"), command.output
    refused = person.runs("docker", *ROWS)
    assert refused.end() == 2
    assert re.search(r"^testbed: .*[Cc]annot connect to the Docker daemon", refused.output, re.MULTILINE), (
        refused.output
    )
    person.node.run("systemctl", "start", "docker.socket", "docker")
    again = person.runs("docker", *ROWS)
    assert again.end() in (0, 1), again.output
    assert all_fit(person, "docker"), again.output


@pytest.fixture
def small_disk(person: Person) -> Iterator[str]:
    """Mount a file system of 16 MiB as the folder of the run "full" on the node."""
    folder = f"{REMOTE_RUNS}/full"
    person.node.run("install", "-d", "-o", USER, "-g", USER, folder)
    person.node.run("mount", "-t", "tmpfs", "-o", f"size=16m,uid={USER},gid={USER}", "tmpfs", folder)
    yield folder
    person.node.run("umount", "--lazy", folder)


def test_a_full_disk_is_an_error_until_space_is_freed(person: Person, last: Command, small_disk: str) -> None:
    command = running(person, "full")
    person.node.run("sh", "-c", f"cat /dev/zero > {small_disk}/filler || true")
    assert command.end() == EXIT_ERROR, command.output
    assert "error" in person.outcomes("full").values(), command.output
    person.node.run("rm", f"{small_disk}/filler")
    again = person.runs("full", *ROWS)
    assert again.end() in (0, 1), again.output
    assert all_fit(person, "full"), again.output
