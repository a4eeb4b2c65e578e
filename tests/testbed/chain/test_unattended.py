"""A lease whose client has ended for good: its node finishes the row, copies the results and ends the lease."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes.waiting import wait_for
from tests.support.services.sshd import Sshd
from tests.testbed.chain.cli_user import REMOTE_RUNS, SUITE, CliUser, Command
from tests.testbed.chameleon.conftest import left_at
from tests.testbed.node import network

ROW = "reduced-batch"
IDLE, IDLE_S = "5m", 300.0
LATE_S = 120.0
SSH = 22
ROW_S = 1200.0

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture
def results_target(cli_user: CliUser, tmp_path: Path) -> Iterator[Path]:
    """The folder at the other end of --results-to: this machine, as the nodes reach it by SSH."""
    server = Sshd(tmp_path / "sshd", addresses=[network.GATEWAY], port=SSH).start()
    known_hosts = cli_user.cloud.folder / ".ssh" / "known_hosts"
    known_hosts.parent.mkdir(exist_ok=True)
    known_hosts.write_text(f"{network.GATEWAY} {(tmp_path / 'sshd' / 'host.pub').read_text()}")
    yield tmp_path / "saved"
    server.stop()


def reproduces(cli_user: CliUser, target: Path) -> Command:
    results_to = f"root@{network.GATEWAY}:{target}"
    key = target.with_name("sshd") / "key"
    return cli_user.start_reproduce(
        "--row", ROW, "--end-when-idle", IDLE, "--results-to", results_to, "--results-key", str(key)
    )


def words_of(command: Command) -> str:
    command.end()
    return " ".join(command.output.split())


def test_a_lease_whose_client_is_gone_copies_its_results_to_the_target_and_ends_itself(
    cli_user: CliUser, results_target: Path
) -> None:
    client = reproduces(cli_user, results_target)
    client.until(f"{ROW}: starts")
    wait_for(lambda: len(cli_user.containers()) == 1)
    node, site = cli_user.node, cli_user.cloud.site
    client.kill_all()

    jobs = node.root / REMOTE_RUNS.removeprefix("/")
    wait_for(lambda: list(jobs.glob(f"*/.jobs/{ROW}*/ended")), ROW_S)
    (ended,) = jobs.glob(f"*/.jobs/{ROW}*/ended")
    ended_s = ended.stat().st_mtime
    wait_for(lambda: not site.leases(), IDLE_S + LATE_S)
    assert IDLE_S <= time.time() - ended_s <= IDLE_S + LATE_S

    (result,) = results_target.glob(f"*/{SUITE}/{ROW}/result.json")
    assert json.loads(result.read_text())["outcome"] == "fits"
    wait_for(lambda: not cli_user.cloud.machines.nodes)
    assert f"ended itself after {IDLE} without work" in words_of(cli_user.start_command("status"))
    assert words_of(cli_user.start_command("orphans")) == "no leaked resources"

    again = words_of(reproduces(cli_user, results_target))
    assert f"rsync -a root@{network.GATEWAY}:{results_target}/ results/" in again
    assert left_at(site) == []

    subprocess.run(["rsync", "-a", f"{results_target}/", f"{cli_user.results}/"], check=True)
    evaluated = words_of(reproduces(cli_user, results_target))
    assert "every row already has a result" in evaluated
    assert "slots" not in evaluated
    assert left_at(site) == []
