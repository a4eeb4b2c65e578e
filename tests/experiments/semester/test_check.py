"""The check before a semester: its parts, changed statuses with their causes, resumption, and the lock."""

import json
import os
import time
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from experiments.cli.app import main
from experiments.semester import check
from experiments.semester.parts import CheckLease, CheckPart, command_of_part, parts_of
from experiments.semester.process import STALL_LIMIT_S, run_logged
from experiments.semester.state import STATE_FILE, Check, checks_in
from experiments.semester.versions import VERSION_SETS, NotInstalled
from experiments.system.lock import lock_folder
from tests.support.fake_environment import SUITE

LEASE = ("--lease", "gpu_a100_pcie", "--max-hours", "6")
CURRENT = ("--versions", "current")
MINIATURES_IN_WORDS = f"current versions: miniatures of {SUITE} for a100_80gb"
MINIATURES, PREDICTIONS = f"current-miniatures-{SUITE}-a100_80gb", f"current-predictions-{SUITE}-h100_94gb"


def recorded_calls(checks: Path) -> list[str]:
    return (checks / "CALLS.txt").read_text().split()


def backdate_newest_check(checks: Path) -> None:
    """Date the newest check a week back, in its state file and the name of its folder."""
    ((place, state),) = checks_in(checks)
    older = state.model_copy(update={"begun_at": state.begun_at - timedelta(days=7)})
    (place / STATE_FILE).write_text(older.model_dump_json())
    place.rename(checks / f"{older.begun_at:%Y-%m-%dT%H%M%S}")


def test_a_first_check_runs_each_of_its_parts_as_a_process_and_compares_with_no_earlier_check(
    semester, checks, monkeypatch
):
    monkeypatch.setattr(check, "run_logged", run_logged)
    code, out, err = semester("--summary", "summary.md", "--junit", "junit.xml")
    assert (code, err) == (0, "")
    assert "This is the first check" in out
    names = [part.name for part in parts_of(VERSION_SETS, [SUITE], None)]
    assert recorded_calls(checks) == [name for name in names if "environment" not in name]
    assert f"[{len(names)}/{len(names)}] newest versions: predictions of {SUITE} for h100_94gb" in out
    assert (checks / "latest" / "semester.html").is_file()
    summary = Path("summary.md").read_text()
    assert "| versions | pass | fail | error | not evaluated |" in summary
    suites = {suite.get("name"): suite for suite in ET.parse("junit.xml").getroot()}
    assert len(suites["parts"]) == len(names)
    assert int(suites[f"current miniatures {SUITE} a100_80gb"].get("tests")) > 50


def test_an_unchanged_second_check_reports_no_changed_status(semester, checks):
    semester(*CURRENT)
    backdate_newest_check(checks)
    code, out, _ = semester(*CURRENT)
    assert (code, "No status or outcome flipped since" in out) == (0, True)


def test_a_message_names_each_changed_status_with_its_statement(semester, checks, webhook):
    address, received = webhook
    semester(*CURRENT)
    backdate_newest_check(checks)
    (checks / "OOM.txt").write_text("reduced-batch")
    code, out, _ = semester(*CURRENT, "--summary", "summary.md", "--junit", "junit.xml", "--notify", address)
    assert code == 1
    assert "flipped: current versions: " in out
    assert "pass → fail" in out
    assert "### Flipped" in Path("summary.md").read_text()
    flips = next(one for one in ET.parse("junit.xml").getroot() if one.get("name") == "flips")
    assert int(flips.get("failures")) == len(flips) > 0
    titles = [one["title"] for one in received]
    assert "statuses and outcomes flipped in current versions: miniatures" in titles[0]
    assert titles[-1].startswith("testbed: semester check finished.")
    assert "pass-word" not in "".join(path.read_text() for path in checks.rglob("*.json"))


def test_a_part_of_the_check_that_fails_is_reported_and_the_other_parts_run(semester, checks):
    semester(*CURRENT)
    backdate_newest_check(checks)
    (checks / "BROKEN.txt").write_text(MINIATURES)
    code, out, _ = semester(*CURRENT)
    assert code == 1
    assert f"{MINIATURES_IN_WORDS}: has no result any more: exit code 3: testbed: the driver is missing" in out
    assert f">{MINIATURES_IN_WORDS}<" in (checks / "latest" / "semester.html").read_text()
    assert recorded_calls(checks)[-2:] == [MINIATURES, PREDICTIONS]


def test_predictions_that_evaluate_no_statement_are_reported(semester, checks):
    (checks / "UNTRACEABLE.txt").write_text(PREDICTIONS)
    _, out, _ = semester(*CURRENT)
    reason = "no statement was evaluated: not predicted: baseline: cannot be traced (ValueError: one tensor)"
    assert f"to fix: current versions: predictions of {SUITE} for h100_94gb: no result: {reason}" in out


def test_a_list_of_packages_that_cannot_be_resolved_is_reported(semester, checks, monkeypatch):
    known = vars(check)["python_of"]

    def python_of(name, *more):
        if name == "newest":
            raise NotInstalled("a needs b<2 and c needs b>=2")
        return known(name, *more)

    monkeypatch.setattr(check, "python_of", python_of)
    code, out, _ = semester("--versions", "newest", *CURRENT)
    assert code == 0
    assert "to fix: newest versions: environment: no result: a needs b<2 and c needs b>=2" in out
    assert recorded_calls(checks) == [MINIATURES, PREDICTIONS]


def test_an_interrupted_check_resumes(semester, checks, monkeypatch):
    def interrupted(words, *more):
        if "--predict-only" in words:
            raise KeyboardInterrupt
        return run_logged(words, *more)

    with monkeypatch.context() as patched:
        patched.setattr(check, "run_logged", interrupted)
        assert semester(*CURRENT)[0] == 130
    assert recorded_calls(checks) == [MINIATURES]
    assert semester(*CURRENT)[0] == 0
    assert recorded_calls(checks) == [MINIATURES, PREDICTIONS]
    assert len(checks_in(checks)) == 1


def test_checks_that_begin_in_the_same_second_have_different_folders(tmp_path):
    now, names = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), []
    for _ in range(2):
        folder = check._new_folder(tmp_path, now)
        folder.mkdir()
        names.append(folder.name)
    assert names == ["2026-12-31T235959", "2027-01-01T000000"]


@pytest.mark.parametrize(("age", "plan"), [(timedelta(days=8), None), (timedelta(days=1), ("other",))])
def test_an_old_or_different_interrupted_check_is_not_resumed(semester, checks, age, plan):
    semester(*CURRENT)
    ((place, state),) = checks_in(checks)
    changed = state.model_copy(update={"ended_at": None, "begun_at": state.begun_at - age, "plan": plan or state.plan})
    (place / STATE_FILE).write_text(changed.model_dump_json())
    semester(*CURRENT)
    assert len(checks_in(checks)) == 2


def test_a_second_start_of_the_check_names_the_process_that_holds_the_lock(semester, checks):
    with lock_folder(checks.relative_to(Path.cwd())):
        code, _, err = semester(*CURRENT)
    assert code == 2
    assert "results/semester: in use by process" in err


def test_json_has_the_changed_statuses_and_the_state(semester, checks):
    code, out, _ = semester(*CURRENT, "--json")
    found = json.loads(out)
    assert (code, found["flips"]) == (0, [])
    assert Check.model_validate(found["check"]).ended_at
    assert found["statements"]["current"]["pass"] > 0


def test_a_check_stored_by_an_earlier_version_can_be_read(semester):
    _, out, _ = semester(*CURRENT, "--json")
    stored = json.loads(out)["check"]
    earlier = {{"version_sets": "sets"}.get(name, name): value for name, value in stored.items()}
    assert "sets" in earlier
    assert Check.model_validate(earlier) == Check.model_validate(stored)


def test_the_remaining_time_is_estimated_from_the_last_check(semester, checks):
    semester(*CURRENT)
    ((place, state),) = checks_in(checks)
    slow = {name: one.model_copy(update={"took_s": 600.0}) for name, one in state.done.items()}
    (place / STATE_FILE).write_text(state.model_copy(update={"done": slow}).model_dump_json())
    backdate_newest_check(checks)
    assert "[1/3] current versions: environment; 0:00 so far, about 30:00 left" in semester(*CURRENT)[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lease", "gpu_a100_pcie"], "--lease gpu_a100_pcie: needs --max-hours"),
        (["--lease", "gpu_a100_pcie", "--max-hours", "5"], "--max-hours 5: 2 leases of 3 hours take longer"),
        (["--end-when-idle", "30m"], "--end-when-idle 30m: allowed with --lease only"),
        ([*LEASE, "--end-when-idle", "4m"], "--end-when-idle 4m: allowed: 5m or longer"),
        (["--versions", "newer"], "--versions: unknown set of versions 'newer'; allowed: as-taught, current, newest"),
    ],
)
def test_an_invalid_option_is_rejected_in_one_line(semester, words, message):
    code, out, err = semester(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_check_leases_nodes_by_the_command_reproduce_within_the_budget():
    lease = CheckLease("chameleon", "gpu_a100_pcie", 3.0, 6.0)
    leased = [part for part in parts_of(VERSION_SETS, [SUITE], lease) if part.kind == "lease"]
    assert leased == [CheckPart("as-taught", "lease"), CheckPart("current", "lease")]
    words = command_of_part(leased[0], Path("python"), Path("runs"), [SUITE], lease)
    assert words[3:5] == ["reproduce", SUITE]
    assert " ".join(words).endswith(
        "--node-type gpu_a100_pcie --hours 3 --max-hours 3 --yes --versions as-taught --results runs"
    )


@pytest.fixture
def reproduce_commands(monkeypatch):
    """Commands `testbed reproduce` of the check, as lists of words. Fake: each command only prints its plan."""
    calls = []

    def run(words, *more):
        if words[3] != "reproduce":
            return run_logged(words, *more)
        calls.append(words)
        return main([*words[3:], "--site", "demo", "--dry-run"])

    monkeypatch.setattr(check, "run_logged", run)
    return calls


def test_a_lease_of_a_check_ends_itself_as_requested(semester, checks, tmp_path, reproduce_commands):
    (tmp_path / "key").write_text("a key")
    end_when_idle = ["--end-when-idle", "30m", "--results-to", "me@host.edu:there", "--results-key"]
    out = semester(*CURRENT, *LEASE, *end_when_idle, "key")[1]
    (words,) = reproduce_commands
    assert words[words.index("--end-when-idle") :][:6] == [*end_when_idle, str(tmp_path / "key")]
    assert "keystone: create a credential that can only end this lease" in out


def test_a_lease_of_a_check_does_not_end_itself_unless_requested(semester, checks, reproduce_commands):
    out = semester(*CURRENT, *LEASE)[1]
    (words,) = reproduce_commands
    assert not [word for word in words if word.startswith(("--end-when-idle", "--results-to", "--results-key"))]
    assert "create lease" in out
    assert "credential" not in out


def test_a_part_of_the_check_without_progress_is_reported_once(tmp_path):
    messages = []
    callbacks = check.CheckCallbacks(lambda line: None, lambda title, text: messages.append(text))
    look = check._poll_function(CheckPart("current", "miniatures", SUITE, "a100_80gb"), tmp_path, callbacks)
    (tmp_path / "log.txt").write_text("a line")
    look()
    assert messages == []
    silent = time.time() - STALL_LIMIT_S
    os.utime(tmp_path / "log.txt", (silent, silent))
    look()
    look()
    assert len(messages) == 1
    assert "no progress for 10:00" in messages[0]
