"""The journal of leases: it is complete after every operation, even if a program is killed while it writes."""

import json
import multiprocessing
import os
from datetime import UTC, datetime

import pytest

from provision.errors import BadJournal
from provision.folders import state_folder
from provision.leasing.journal import Journal, Machine, Operation
from provision.models import TAG
from provision.ssh.login import Login


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "state", lambda: datetime(2026, 11, 21, tzinfo=UTC))


def test_the_journal_keeps_the_intents_and_outcomes_of_an_active_lease_until_it_is_closed(journal):
    active_lease = journal.open_lease("llm_cc", "CHI@UC")
    journal.write("intent", active_lease, Operation.CREATE_LEASE, end="soon")
    assert journal.active_lease("llm_cc").intents == {Operation.CREATE_LEASE: {"end": "soon"}}
    assert journal.active_lease("llm_cc").outcomes == {}
    journal.write("done", active_lease, Operation.CREATE_LEASE, id="1")
    assert journal.active_lease("llm_cc").outcomes == {Operation.CREATE_LEASE: {"id": "1"}}
    journal.write("closed", active_lease)
    assert journal.active_leases() == {}


def test_a_lease_no_longer_counts_as_created_once_its_deletion_is_intended(journal):
    active_lease = journal.open_lease("llm_cc", "CHI@UC")
    journal.write("done", active_lease, Operation.CREATE_LEASE, id="1")
    journal.write("intent", active_lease, Operation.DELETE_LEASE, id="1")
    assert journal.active_lease("llm_cc").outcomes == {}


def test_the_journal_keeps_the_hosts_that_failed(journal):
    active_lease = journal.open_lease("llm_cc", "CHI@UC")
    for host in ("1", "2", "1"):
        journal.write("failed", active_lease, Operation.CREATE_SERVER, hosts=[host], reason="no power")
    assert journal.active_lease("llm_cc").failed_hosts == ("1", "2")


def test_a_machine_is_known_until_its_server_is_deleted(journal):
    active_lease = journal.open_lease("llm_cc", "CHI@UC")
    logins = (Login(f"192.0.2.{n}", f"id-{n}", journal.folder / "key", journal.known_hosts) for n in (2, 1))
    machines = [Machine(f"node-{n}", login) for n, login in zip((2, 1), logins, strict=True)]
    for machine in (machines[0], *machines):
        journal.record_machine(active_lease, machine)
    assert journal.active_lease("llm_cc").machines == (machines[1], machines[0])
    journal.write("done", active_lease, Operation.DELETE_SERVER, id="id-1")
    assert journal.active_lease("llm_cc").machines == (machines[0],)


def test_a_line_that_a_killed_program_left_incomplete_is_skipped(journal):
    active_lease = journal.open_lease("llm_cc", "CHI@UC")
    file = journal.folder / "ledger.jsonl"
    file.write_text(file.read_text() + '{"at": "2026')
    journal.write("done", active_lease, Operation.CREATE_LEASE, id="1")
    assert journal.active_lease("llm_cc").outcomes == {Operation.CREATE_LEASE: {"id": "1"}}


@pytest.mark.parametrize("place", [0, 9, 30, 60, 100, -10, -3, -1])
def test_the_error_for_a_line_that_changed_since_it_was_written_names_its_number(journal, place):
    active_lease = journal.open_lease("llm_cc", "CHI@UC")
    journal.write("done", active_lease, Operation.CREATE_LEASE, id="1")
    file = journal.folder / "ledger.jsonl"
    first, _, rest = file.read_bytes().partition(b"\n")
    changed = bytearray(first)
    changed[place] ^= 1
    file.write_bytes(bytes(changed) + b"\n" + rest)
    with pytest.raises(BadJournal, match="line 1 is damaged"):
        journal.active_leases()


def test_a_line_of_an_earlier_version_without_a_checksum_is_accepted(journal):
    journal.open_lease("llm_cc", "CHI@UC")
    file = journal.folder / "ledger.jsonl"
    fields = json.loads(file.read_text())
    del fields["sum"]
    file.write_text(json.dumps(fields) + "\n")
    assert journal.active_lease("llm_cc")


def test_an_incomplete_last_line_is_skipped_wherever_it_is_cut_off(journal):
    journal.write("done", journal.open_lease("llm_cc", "CHI@UC"), Operation.CREATE_LEASE, cost_su=None, hosts=["1"])
    file = journal.folder / "ledger.jsonl"
    text = file.read_text()
    for end in range(text.index("\n") + 2, len(text) - 1):
        file.write_text(text[:end])
        assert journal.active_lease("llm_cc").outcomes == {}


def test_only_its_user_can_read_the_journal(journal):
    journal.folder.mkdir()
    (journal.folder / "ledger.jsonl").touch(0o644)
    journal.open_lease("llm_cc", "CHI@UC")
    assert (journal.folder / "ledger.jsonl").stat().st_mode & 0o077 == 0


def test_a_file_in_place_of_the_journal_s_folder_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadJournal, match=f"{tmp_path}/file: not a folder; set TESTBED_LEDGER"):
        Journal(tmp_path / "file").active_leases()


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/b", "..", ".", ""])
def test_a_lease_name_that_would_place_its_lock_in_another_folder_is_rejected(journal, name):
    with pytest.raises(BadJournal, match="is not a valid lease name"), journal.lock_lease(name):
        pass


def test_the_error_for_a_journal_of_another_version_names_the_line(journal):
    journal.open_lease("llm_cc", "CHI@UC")
    file = journal.folder / "ledger.jsonl"
    file.write_text(json.dumps({"version": 9}) + "\n")
    with pytest.raises(BadJournal, match="line 1: version 9; allowed: 1"):
        journal.active_leases()


def _write_many(journal):
    for number in range(50):
        journal.write("done", journal.active_lease("llm_cc"), Operation.UPLOAD_KEY, id=str(number))


def test_no_line_is_lost_if_several_programs_write_at_once(journal):
    journal.open_lease("llm_cc", "CHI@UC")
    writers = [multiprocessing.get_context("fork").Process(target=_write_many, args=(journal,)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(journal.entries()) == 1 + 4 * 50


def test_a_second_program_waits_for_the_lock_of_the_first_and_reports_that_it_waits(journal):
    calls = []
    with journal.lock_lease("llm_cc"):
        other = multiprocessing.get_context("fork").Process(target=_wait_alone, args=(journal,))
        other.start()
        other.join(0.3)
        assert other.is_alive()
    other.join(5)
    assert other.exitcode == 0
    with journal.lock_lease("llm_cc", lambda: calls.append("waiting")):
        assert calls == []


def test_a_program_that_waits_for_a_lock_reports_it_once(journal):
    calls, entered = [], []
    first = journal.lock_lease("llm_cc")
    first.__enter__()

    def end_of_first():
        calls.append("waiting")
        first.__exit__(None, None, None)

    with journal.lock_lease("llm_cc", end_of_first):
        entered.append("second")
    with journal.lock_lease("other"), journal.lock_lease("llm_cc"):
        entered.append("both")
    assert (calls, entered) == (["waiting"], ["second", "both"])


def test_each_tag_is_unique_and_has_the_format_of_tags(journal):
    tags = {journal.open_lease("llm_cc", "CHI@UC").tag for _ in range(9)}
    assert len(tags) == 9
    assert all(TAG.fullmatch(tag) for tag in tags)


def test_each_record_has_a_time_in_seconds_and_the_site_of_its_lease(journal):
    opened = journal.open_lease("llm_cc", "CHI@UC")
    assert (opened.since, opened.site) == ("2026-11-21T00:00:00+00:00", "CHI@UC")
    assert [entry.version for entry in journal.entries()] == [1]


def _wait_alone(journal):
    with journal.lock_lease("llm_cc"):
        pass


def test_environment_variables_set_the_folder_of_the_journal(monkeypatch, tmp_path):
    monkeypatch.delenv("TESTBED_LEDGER", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "llm-testbed"
    monkeypatch.setenv("TESTBED_LEDGER", str(tmp_path / "mine"))
    assert state_folder() == tmp_path / "mine"


def test_an_operation_is_unfinished_until_its_outcome_is_written(journal):
    active_lease = journal.open_lease("llm_cc", "CHI@UC")
    for outcome in ("done", "failed"):
        journal.write("intent", active_lease, Operation.EXTEND_LEASE, by="1h")
        journal.write("done", active_lease, Operation.UPLOAD_KEY)
        assert journal.pending_intent(active_lease, Operation.EXTEND_LEASE) == {"by": "1h"}
        journal.write(outcome, active_lease, Operation.EXTEND_LEASE, by="1h")
        assert journal.pending_intent(active_lease, Operation.EXTEND_LEASE) == {}


def test_the_last_recorded_hosts_of_a_lease_are_known_after_its_end(journal):
    active_lease = journal.open_lease("llm_cc", "CHI@UC")
    for id, hosts in (("1", ["7"]), ("1", ["8", "9"]), ("2", ["3"]), ("1", [])):
        journal.write("done", active_lease, Operation.CREATE_LEASE, id=id, hosts=hosts)
    journal.write("intent", active_lease, Operation.CREATE_LEASE, id="1", hosts=["4"])
    assert [journal.lease_hosts(id) for id in ("1", "2", "3")] == [("8", "9"), ("3",), ()]


def test_start_and_end_of_a_lease_are_those_recorded_last(journal):
    active_lease, other = journal.open_lease("llm_cc", "CHI@UC"), journal.open_lease("other", "CHI@UC")
    assert (journal.recorded_start(active_lease), journal.recorded_end(active_lease)) == (None, None)
    times = {"start": "2026-11-21T12:00+00:00", "end": "2026-11-21T15:00+00:00"}
    journal.write("done", active_lease, Operation.CREATE_LEASE, id="1", **times)
    journal.write("done", active_lease, Operation.EXTEND_LEASE, id="1", end="2026-11-21T16:00+00:00")
    journal.write("intent", active_lease, Operation.EXTEND_LEASE, end="2026-11-21T17:00+00:00")
    journal.write("done", other, Operation.CREATE_LEASE, id="2", end="2026-11-21T18:00+00:00")
    journal.write("done", active_lease, Operation.UPLOAD_KEY, id="3")
    active_lease = journal.active_lease("llm_cc")
    assert journal.recorded_start(active_lease) == datetime(2026, 11, 21, 12, tzinfo=UTC)
    assert journal.recorded_end(active_lease) == datetime(2026, 11, 21, 16, tzinfo=UTC)


def test_a_machine_is_known_while_the_deletion_of_its_server_is_unfinished(journal):
    active_lease = journal.open_lease("llm_cc", "CHI@UC")
    machine = Machine("node", Login("192.0.2.1", "id-1", journal.folder / "key", journal.known_hosts))
    journal.record_machine(active_lease, machine)
    for event, operation in (("intent", Operation.DELETE_SERVER), ("done", Operation.DELETE_VOLUME)):
        journal.write(event, active_lease, operation, id="id-1")
    assert journal.active_lease("llm_cc").machines == (machine,)


def test_a_journal_that_cannot_be_read_is_named(journal):
    (journal.folder / "ledger.jsonl").mkdir(parents=True)
    with pytest.raises(BadJournal, match=r"ledger\.jsonl: cannot be read \(Is a directory\)"):
        journal.entries()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 10**5, "line 3 is damaged"),
        ('{"version": 1, "event": "opened"}', "line 3 is damaged"),
        ('{"version": 1, "other": 2}', "line 3 is damaged"),
        ("[1]", "line 3: version None"),
        ('{"at": 1}}', "line 3 is damaged"),
        ('{"at": "x}', "line 3 is damaged"),
        ("rubbish", "line 3 is damaged"),
    ],
)
def test_the_error_for_a_malformed_line_names_its_number(journal, line, message):
    """The second line is empty."""
    journal.open_lease("llm_cc", "CHI@UC")
    with (journal.folder / "ledger.jsonl").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(BadJournal, match=message):
        journal.entries()


def test_the_tag_of_a_lease_stays_known_after_the_lease_is_closed(journal):
    active_leases = [journal.open_lease(name, "CHI@UC") for name in ("llm_cc", "llm_other")]
    journal.write("closed", active_leases[0])
    assert journal.tags() == {active_lease.tag for active_lease in active_leases}


@pytest.mark.parametrize("line", [{"version": 0}, {"version": None}, {"version": "1"}, {}, {"event": "opened"}])
def test_a_line_of_an_older_version_or_without_a_version_is_rejected(journal, line):
    journal.open_lease("llm_cc", "CHI@UC")
    (journal.folder / "ledger.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(BadJournal, match=r"line 1: version .*; allowed: 1"):
        journal.active_leases()


def test_an_operation_of_another_lease_is_not_attributed_to_this_lease(journal):
    mine, other = journal.open_lease("mine", "CHI@UC"), journal.open_lease("other", "CHI@UC")
    journal.write("intent", other, Operation.EXTEND_LEASE, end="soon")
    assert journal.pending_intent(mine, Operation.EXTEND_LEASE) == {}
    assert journal.pending_intent(other, Operation.EXTEND_LEASE) == {"end": "soon"}


@pytest.mark.parametrize("lock_first", [True, False])
def test_only_its_user_can_open_the_folder_of_the_journal(journal, lock_first):
    umask = os.umask(0)
    try:
        if lock_first:
            with journal.lock_lease("llm_cc"):
                pass
        journal.open_lease("llm_cc", "CHI@UC")
    finally:
        os.umask(umask)
    assert journal.folder.stat().st_mode & 0o077 == 0


def test_each_line_is_flushed_to_disk(journal, monkeypatch):
    on_disk = []
    monkeypatch.setattr(os, "fsync", lambda file: on_disk.append(os.pread(file, 1000, 0)))
    journal.open_lease("llm_cc", "CHI@UC")
    assert b'"opened"' in on_disk[-1]
