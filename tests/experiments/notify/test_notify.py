"""Messages arrive at a real SMTP server and at a webhook; no output and no file contains their addresses."""

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from experiments.cli.app import main
from experiments.notify.messages import lease_messages, run_message
from experiments.notify.send import Notifier
from experiments.report.write import write_report
from experiments.reproduce import LeaseEnded
from experiments.runners import targets
from experiments.system.secrets import hide_in_command
from provision.leasing.journal import ActiveLease, Operation
from provision.leasing.release import LeaseSnapshot
from provision.leasing.request import EndWhenIdle, end_when_idle_data
from tests.support.results.handwritten import h200_run
from tests.support.runners.fake_runner import SUITE, FakeRunner

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Mailbox:
    """Stores each message of an SMTP server."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def handle_DATA(self, server, session, envelope):  # noqa: N802 - a method of aiosmtpd
        self.messages.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 stored"


@pytest.fixture
def mail() -> Iterator[tuple[str, Mailbox]]:
    """The address of a mail server on this machine, and what it received."""
    mailbox = Mailbox()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Controller(mailbox, hostname="127.0.0.1", port=port)
    server.start()
    yield f"mailto://127.0.0.1:{port}?from=testbed@course.edu&to=prof@course.edu&mode=insecure", mailbox
    server.stop()


def test_a_message_arrives_by_mail_and_webhook(mail, webhook):
    (mail_url, mailbox), (hook_url, received) = mail, webhook
    assert Notifier([mail_url, hook_url]).send("a title", "a text") == ""
    (message,) = mailbox.messages
    assert (message["Subject"], message["To"]) == ("a title", "prof@course.edu")
    assert "a text" in message.get_body(("plain", "html")).get_content()
    assert [(one["title"], one["message"]) for one in received] == [("a title", "a text")]


def test_messages_also_go_to_the_addresses_in_the_environment_variable(webhook, monkeypatch):
    url, received = webhook
    monkeypatch.setenv("TESTBED_NOTIFY", f"{url} {url}")
    assert Notifier([]).send("title", "text") == ""
    assert len(received) == 2


def test_unreachable_addresses_are_counted_and_their_secrets_are_not_shown(webhook, capfd):
    url, _ = webhook
    dead = "json://user:pass-word@127.0.0.1:9/hook"
    assert Notifier([url, dead]).send("title", "text") == "notification: 1 of 2 addresses not reached"
    assert "pass-word" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("address", ["nothing://user:pass-word@host", "pass-word", ""])
def test_an_unknown_address_is_rejected_before_anything_runs(address, capfd, tmp_path):
    assert main(["run", SUITE, "--notify", address, "--results", str(tmp_path / "results")]) == 2
    out, err = capfd.readouterr()
    assert "--notify: address 1" in err
    assert "pass-word" not in out + err
    assert not (tmp_path / "results").exists()


def test_a_finished_run_sends_its_verdict_and_stores_no_address(webhook, monkeypatch, tmp_path, capfd):
    url, received = webhook
    monkeypatch.setattr(targets, "LocalRunner", FakeRunner)
    words = ["--row", "xxl-sgd", "--no-predict", "--size", "tiny", "--results", str(tmp_path)]
    main(["run", SUITE, *words, "--notify", url])
    (message,) = received
    assert f"{SUITE}-" in message["title"]
    assert "finished: " in message["title"]
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"pass-word" not in stored
    assert b"--notify ***" in stored or b"--notify '***'" in stored
    assert "pass-word" not in "".join(capfd.readouterr())


def test_a_message_names_changed_and_failed_statements(tmp_path: Path):
    evaluation = write_report(h200_run(tmp_path / "run")).evaluation
    failing = next(one for one in evaluation.verdicts if one.status == "fail")
    message = run_message(evaluation, {failing.id: "pass"})
    assert message.title.endswith(", 1 flipped")
    assert f"flipped: {failing.says.removesuffix('.')}: pass → fail" in message.text.splitlines()
    assert f"fail: {failing.says.removesuffix('.')}: {failing.reason}" in message.text.splitlines()


def state(begins: timedelta, ends: timedelta, used_su: float | None = None):
    lease = SimpleNamespace(start=NOW + begins, end=NOW + ends)
    return SimpleNamespace(lease=lease, active_lease=SimpleNamespace(name="lab"), used_su=used_su)


@pytest.mark.parametrize(
    ("one", "above", "titles"),
    [
        (state(-HOUR, HOUR / 2), None, ["testbed: lease lab ends in 30m"]),
        (state(HOUR / 2, 4 * HOUR), None, ["testbed: lease lab begins in 30m"]),
        (state(-HOUR, 4 * HOUR), 10.0, []),
        (state(-HOUR, 4 * HOUR, 12.5), 10.0, ["testbed: lease lab has cost 12.5 service units, more than 10"]),
        (state(-HOUR, 4 * HOUR, 9.5), 10.0, []),
        (state(-2 * HOUR, -HOUR), None, []),
    ],
    ids=["ends", "begins", "unknown cost", "too dear", "cheap", "over"],
)
def test_a_lease_that_begins_or_ends_soon_or_costs_much_is_reported(one, above, titles):
    assert [message.title for message in lease_messages([one], NOW, HOUR, above)] == titles


def deleted_lease(*records: str) -> LeaseSnapshot:
    outcomes = dict.fromkeys(records, end_when_idle_data(EndWhenIdle(HOUR / 2)))
    return LeaseSnapshot(ActiveLease("lab", "tag", "CHI@UC", "", outcomes=outcomes), None, (), (), (), None, None)


def test_the_end_of_a_lease_that_ends_itself_is_reported():
    ended = deleted_lease(Operation.CREATE_LEASE, Operation.CREATE_CREDENTIAL)
    (message,) = lease_messages([ended], NOW, HOUR, None)
    assert message.title == "testbed: lease lab ended itself or was deleted"
    assert "either it ended itself after 30m without work (all results were fetched), or somebody" in message.text
    assert message.text.endswith("`testbed release lab` deletes what is left at CHI@UC")


def test_a_reproduction_reports_that_its_lease_has_ended(webhook, monkeypatch, tmp_path, capfd):
    def gone_since(*_):
        raise LeaseEnded("lease lab was deleted: either it ended itself, or somebody deleted it")

    url, received = webhook
    monkeypatch.setenv("TESTBED_LEDGER", str(tmp_path))
    monkeypatch.setattr("experiments.reproduce.reproduce", gone_since)
    assert main(["reproduce", SUITE, "--site", "demo", "--yes", "--results", str(tmp_path), "--notify", url]) == 2
    (message,) = received
    assert message["title"] == "testbed: a lease ended itself or was deleted"
    assert "lease lab was deleted" in message["message"]


@pytest.mark.parametrize("records", [(Operation.CREATE_LEASE,), (Operation.CREATE_CREDENTIAL,)])
def test_a_lease_that_does_not_end_itself_or_is_being_released_is_not_reported(records):
    assert list(lease_messages([deleted_lease(*records)], NOW, HOUR, None)) == []


def test_addresses_are_hidden_in_a_stored_command_line():
    words = ["run", "--notify", "a://b", "--row", "x", "--notify=c://d"]
    assert hide_in_command(words) == ["run", "--notify", "***", "--row", "x", "--notify=***"]
