"""The end of the chain: no secret in any file, correct owners, and no resources at the testbed."""

import json
import os

import pytest

from provision.ssh.login import USER
from tests.support.processes.waiting import wait_for
from tests.testbed.chain.cli_user import REMOTE_RUNS, CliUser, Command
from tests.testbed.chameleon.conftest import left_at

pytestmark = pytest.mark.timeout(3600)


def secrets_of(cli_user: CliUser) -> list[bytes]:
    """Return the secrets of the user and the services."""
    private = cli_user.cloud.key.read_bytes().splitlines()[3]
    return [os.environ["OS_PASSWORD"].encode(), private]


def test_no_secret_is_in_results_journal_or_logs(cli_user: CliUser, last_client: Command) -> None:
    folders = [cli_user.results, cli_user.cloud.folder / "ledger", *cli_user.cloud.folder.glob("output-*.txt")]
    files = [path for folder in folders for path in (folder.rglob("*") if folder.is_dir() else [folder])]
    kept = {path: path.read_bytes() for path in files if path.is_file()}
    assert len(kept) > 20
    assert [path for path, data in kept.items() for secret in secrets_of(cli_user) if secret in data] == []


def test_no_secret_is_on_the_node_or_in_its_image(cli_user: CliUser, last_client: Command) -> None:
    searched = [cli_user.node.root / folder for folder in ("etc", "home", "tmp", "var/lib/llm-testbed")]
    files = [path for folder in searched for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in files for secret in secrets_of(cli_user) if secret in path.read_bytes()] == []
    history = cli_user.node.run("docker", "history", "--no-trunc", "llm-testbed:current")
    assert not [secret for secret in secrets_of(cli_user) if secret.decode() in history]


def test_files_of_rows_belong_to_the_user_who_runs_them(cli_user: CliUser, last_client: Command) -> None:
    assert cli_user.node.run("find", REMOTE_RUNS, "!", "-user", USER) == ""


def test_every_result_names_its_container_image(cli_user: CliUser, last_client: Command) -> None:
    image = cli_user.node.run("docker", "image", "inspect", "--format", "{{.Id}}", "llm-testbed:current").strip()
    results = [json.loads(path.read_text()) for path in cli_user.results.glob("*/*/*/result.json")]
    assert {one["image"] for one in results if one["outcome"] == "fits"} == {image}


def test_a_release_that_was_killed_is_resumed_until_nothing_is_left(cli_user: CliUser, last_client: Command) -> None:
    killed_client = cli_user.start_reproduce()
    killed_client.until(r"\[7/7\] release")
    killed_client.kill()
    client = cli_user.start_reproduce()
    assert client.end() in (0, 1), client.output
    assert "configure" not in client.output
    assert left_at(cli_user.cloud.site) == []
    wait_for(lambda: not cli_user.cloud.machines.nodes)
