"""A lease of two nodes: one Slurm cluster, and rows with ranks in containers on both."""

import json

import pytest

from tests.support.processes.waiting import wait_for
from tests.testbed.chain.cli_user import CliUser, Command
from tests.testbed.chameleon.conftest import left_at

ROWS = ("neo-8gpu-ddp", "neo-8gpu-fsdp")
SUITE = "slurm_hf_trainer"


@pytest.mark.timeout(3600)
def test_rows_with_the_launchers_torchrun_and_accelerate_train_on_both_nodes_of_a_lease(
    cli_user: CliUser, last_client: Command
) -> None:
    assert not cli_user.cloud.machines.nodes, "the lease of the other tests is not released"
    named = [part for row in ROWS for part in ("--row", row)]
    client = cli_user.start_reproduce("--nodes", "2", "--gpus-per-node", "1", *named)
    client.until(f"{ROWS[0]}: starts")
    nodes = list(cli_user.cloud.machines.nodes.values())
    wait_for(lambda: [bool(cli_user.containers(node)) for node in nodes] == [True, True], within_s=120)
    assert client.end() in (0, 1), client.output
    (run,) = (path.name for path in cli_user.results.glob("*-1gpus"))
    assert cli_user.outcomes(run) == dict.fromkeys(ROWS, "fits"), client.output
    for row in ROWS:
        result = json.loads((cli_user.results / run / SUITE / row / "result.json").read_text())
        assert len(result["ranks"]) == 2
    assert left_at(cli_user.cloud.site) == []
