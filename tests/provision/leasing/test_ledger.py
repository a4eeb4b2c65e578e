"""The ledger: what is held according to intents and outcomes, whatever killed its writer."""

import json
import multiprocessing
from datetime import UTC, datetime

import pytest

from provision.errors import BadLedger
from provision.leasing.ledger import Act, Ledger, Machine, default_folder
from provision.ssh.login import Login


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "state", lambda: datetime(2026, 11, 21, tzinfo=UTC))


def test_a_holding_has_its_intents_and_outcomes_until_it_is_closed(ledger):
    holding = ledger.open("llm_cc", "CHI@UC")
    ledger.write("intent", holding, Act.CREATE_LEASE, end="soon")
    assert ledger.holding("llm_cc").wanted == {Act.CREATE_LEASE: {"end": "soon"}}
    assert ledger.holding("llm_cc").acts == {}
    ledger.write("done", holding, Act.CREATE_LEASE, id="1")
    assert ledger.holding("llm_cc").acts == {Act.CREATE_LEASE: {"id": "1"}}
    ledger.write("closed", holding)
    assert ledger.holdings() == {}


def test_a_lease_that_is_to_be_deleted_is_not_missed(ledger):
    holding = ledger.open("llm_cc", "CHI@UC")
    ledger.write("done", holding, Act.CREATE_LEASE, id="1")
    ledger.write("intent", holding, Act.DELETE_LEASE, id="1")
    assert ledger.holding("llm_cc").acts == {}


def test_hosts_that_failed_are_remembered(ledger):
    holding = ledger.open("llm_cc", "CHI@UC")
    for host in ("1", "2", "1"):
        ledger.write("failed", holding, Act.CREATE_SERVER, hosts=[host], reason="no power")
    assert ledger.holding("llm_cc").failed_hosts == ("1", "2")


def test_machines_that_answered_are_known_until_their_server_is_deleted(ledger):
    holding = ledger.open("llm_cc", "CHI@UC")
    logins = (Login(f"192.0.2.{n}", f"id-{n}", ledger.folder / "key", ledger.known_hosts) for n in (2, 1))
    machines = [Machine(f"node-{n}", login) for n, login in zip((2, 1), logins, strict=True)]
    for machine in (machines[0], *machines):
        ledger.reached(holding, machine)
    assert ledger.holding("llm_cc").machines == (machines[1], machines[0])
    ledger.write("done", holding, Act.DELETE_SERVER, id="id-1")
    assert ledger.holding("llm_cc").machines == (machines[0],)


def test_a_line_that_a_killed_program_left_half_written_is_passed_over(ledger):
    holding = ledger.open("llm_cc", "CHI@UC")
    file = ledger.folder / "ledger.jsonl"
    file.write_text(file.read_text() + '{"at": "2026')
    ledger.write("done", holding, Act.CREATE_LEASE, id="1")
    assert ledger.holding("llm_cc").acts == {Act.CREATE_LEASE: {"id": "1"}}


def test_a_ledger_of_another_version_is_refused_with_its_line(ledger):
    ledger.open("llm_cc", "CHI@UC")
    file = ledger.folder / "ledger.jsonl"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 9}) + "\n")
    with pytest.raises(BadLedger, match="line 1: version 9; allowed: 1"):
        ledger.holdings()


def _write_many(ledger):
    for number in range(50):
        ledger.write("done", ledger.holding("llm_cc"), Act.UPLOAD_KEY, id=str(number))


def test_programs_that_write_at_once_lose_no_line(ledger):
    ledger.open("llm_cc", "CHI@UC")
    writers = [multiprocessing.get_context("fork").Process(target=_write_many, args=(ledger,)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(ledger.entries()) == 1 + 4 * 50


def test_a_second_program_waits_for_the_first_and_is_told(ledger):
    told = []
    with ledger.alone("llm_cc"):
        other = multiprocessing.get_context("fork").Process(target=_wait_alone, args=(ledger,))
        other.start()
        other.join(0.3)
        assert other.is_alive()
    other.join(5)
    assert other.exitcode == 0
    with ledger.alone("llm_cc", lambda: told.append("waiting")):
        assert told == []


def _wait_alone(ledger):
    with ledger.alone("llm_cc"):
        pass


def test_the_ledger_is_where_the_person_says(monkeypatch, tmp_path):
    monkeypatch.delenv("TESTBED_LEDGER", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "llm-testbed"
    monkeypatch.setenv("TESTBED_LEDGER", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"


def test_an_act_is_begun_until_its_outcome_is_written(ledger):
    holding = ledger.open("llm_cc", "CHI@UC")
    for outcome in ("done", "failed"):
        ledger.write("intent", holding, Act.EXTEND_LEASE, by="1h")
        ledger.write("done", holding, Act.UPLOAD_KEY)
        assert ledger.begun(holding, Act.EXTEND_LEASE) == {"by": "1h"}
        ledger.write(outcome, holding, Act.EXTEND_LEASE, by="1h")
        assert ledger.begun(holding, Act.EXTEND_LEASE) == {}


def test_marks_are_remembered_when_their_page_is_closed(ledger):
    holdings = [ledger.open(name, "CHI@UC") for name in ("llm_cc", "llm_other")]
    ledger.write("closed", holdings[0])
    assert ledger.marks() == {holding.mark for holding in holdings}
