"""The end of the chain: no secret in any file, correct owners, and no resources at the testbed."""

import json
import os

import pytest

from provision.ssh.login import USER
from tests.support.processes.waiting import wait_for
from tests.testbed.chain.person import REMOTE_RUNS, Command, Person
from tests.testbed.chameleon.conftest import left_at

pytestmark = pytest.mark.timeout(3600)


def secrets_of(person: Person) -> list[bytes]:
    """Return the secrets of the user and the services."""
    private = person.stage.key.read_bytes().splitlines()[3]
    return [os.environ["OS_PASSWORD"].encode(), private]


def test_no_secret_is_in_results_journal_or_logs(person: Person, last: Command) -> None:
    folders = [person.results, person.stage.folder / "ledger", *person.stage.folder.glob("output-*.txt")]
    files = [path for folder in folders for path in (folder.rglob("*") if folder.is_dir() else [folder])]
    kept = {path: path.read_bytes() for path in files if path.is_file()}
    assert len(kept) > 20
    assert [path for path, data in kept.items() for secret in secrets_of(person) if secret in data] == []


def test_no_secret_is_on_the_node_or_in_its_image(person: Person, last: Command) -> None:
    searched = [person.node.root / folder for folder in ("etc", "home", "tmp", "var/lib/llm-testbed")]
    files = [path for folder in searched for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in files for secret in secrets_of(person) if secret in path.read_bytes()] == []
    history = person.node.run("docker", "history", "--no-trunc", "llm-testbed:current")
    assert not [secret for secret in secrets_of(person) if secret.decode() in history]


def test_files_of_rows_belong_to_their_user(person: Person, last: Command) -> None:
    assert person.node.run("find", REMOTE_RUNS, "!", "-user", USER) == ""


def test_every_result_names_its_image(person: Person, last: Command) -> None:
    image = person.node.run("docker", "image", "inspect", "--format", "{{.Id}}", "llm-testbed:current").strip()
    results = [json.loads(path.read_text()) for path in person.results.glob("*/*/*/result.json")]
    assert {one["image"] for one in results if one["outcome"] == "fits"} == {image}


def test_a_release_that_was_killed_resumes_until_nothing_is_left(person: Person, last: Command) -> None:
    killed_client = person.reproduces()
    killed_client.until(r"\[7/7\] release")
    killed_client.kill()
    client = person.reproduces()
    assert client.end() in (0, 1), client.output
    assert "configure" not in client.output
    assert left_at(person.stage.site) == []
    wait_for(lambda: not person.stage.machines.nodes)
