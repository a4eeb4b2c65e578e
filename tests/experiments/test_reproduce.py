"""The order of the stages of `testbed reproduce`, and the release of the lease. Fakes: the site, Ansible, the run."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import reproduce as chain
from experiments.cli.app import main
from experiments.errors import InputError, Interrupted
from experiments.history.lease_length import LeaseTooShort, expected_times_on
from experiments.history.lease_record import NO_LEASES, read_records
from experiments.pipeline import PreparedRun
from experiments.reproduce import LeaseEnded, LeaseTooLong, Reproduction, reproduce
from experiments.run_options import RunOptions
from experiments.runners.progress import View
from experiments.suites.suite import suite_named
from experiments.system import signals
from provision.checks import Check
from provision.clock import Clock
from provision.configure.playbook import Setup
from provision.errors import ConfigureFailed, ForeignLease, LeaseMismatch
from provision.leasing import lease as leasing
from provision.leasing.journal import Journal, Operation
from provision.leasing.lease import LeaseResult
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import EndWhenIdle, LeaseRequest, end_when_idle_data
from provision.models import Host, Lease, Requirements
from provision.sites import base as sites
from provision.ssh.login import KeyPair
from tests.support.leasing.fake_site import FakeSite
from tests.support.services.sshd import new_key

NOW = datetime(2026, 11, 22, tzinfo=UTC)
HOST = Host("1", "P3-GPU-001", "CHI@UC", "gpu_a100_pcie", "NVIDIA A100 80GB PCIe", 4, 80, su_per_hour=16)


class LineRecorder(View):
    def __init__(self):
        self.lines = []

    def print_line(self, line):
        self.lines.append(line)


@pytest.fixture
def events():
    return []


@pytest.fixture
def reconciler(tmp_path):
    return Reconciler(Journal(tmp_path / "state"), Clock(), lambda line: None)


@pytest.fixture
def recorded_stages(monkeypatch, events, reconciler):
    """Record each stage; the fake lease stage creates an active lease, and the fake release stage ends it."""

    def lease(site, reconciler, lease_request, watch):
        events.append("lease")
        journal, name = reconciler.journal, lease_request.name
        journal.active_lease(name) or journal.open_lease(name, site.name)
        return LeaseResult(Lease("1", lease_request.name, "ACTIVE", NOW, NOW, ()))

    def release(site, reconciler, name, view):
        events.append("release")
        reconciler.journal.write("closed", reconciler.journal.active_lease(name))

    monkeypatch.setattr(chain, "check_site", lambda *_: events.append("doctor") or [Check("account", "ok", "cc")])
    monkeypatch.setattr(leasing, "lease", lease)
    monkeypatch.setattr(chain, "configure", lambda *_: events.append("configure"))
    monkeypatch.setattr(chain, "_run_on_machines", lambda runs, view: events.append("run") or runs)
    monkeypatch.setattr(chain, "_release", release)


@pytest.fixture
def make_reproduction(tmp_path):
    def make(**more):
        options = RunOptions("single_gpu_blip2", ("reduced-batch",), site="chameleon", results=tmp_path, predict=False)
        requirements = Requirements(timedelta(hours=3), node_type="gpu_a100_pcie")
        lease_request = LeaseRequest("llm_cc", "node", requirements, KeyPair(Path("key"), "ssh-ed25519 A"))
        return Reproduction((options,), lease_request, FakeSite([HOST]), Setup(), **more)

    return make


def test_the_command_reproduce_runs_all_stages_in_order_and_asks_the_user_to_confirm_the_cost(
    recorded_stages, make_reproduction, reconciler, events
):
    asked: list[Any] = []
    runs: list[Any] = reproduce(make_reproduction(), reconciler, LineRecorder(), asked.append)
    (prepared,) = runs
    assert events == ["doctor", "lease", "configure", "run", "release"]
    assert "48 SU" in asked[0]
    assert (prepared.run.card, prepared.run.size) == ("a100_80gb", "full")


@pytest.fixture
def journaled_lease(recorded_stages, reconciler, monkeypatch):
    """A lease of an hour with 16 service units is requested 30 s after its start, and released after 14 minutes.

    The suites run for four of these minutes.
    """
    begun, hour = NOW, timedelta(hours=1)
    now = begun

    def lease(site, reconciler, lease_request, watch):
        nonlocal now
        now = begun + timedelta(seconds=30)
        active = reconciler.journal.open_lease(lease_request.name, site.name)
        times = {"start": begun, "end": begun + hour}
        reconciler.journal.write("intent", active, Operation.CREATE_LEASE, cost_su=16.0, **times)
        reconciler.journal.write("done", active, Operation.CREATE_LEASE, id="1", **times)
        return LeaseResult(Lease("1", lease_request.name, "ACTIVE", NOW, NOW, ()))

    def release(site, reconciler, name, view):
        nonlocal now
        now = begun + timedelta(minutes=14)
        active = reconciler.journal.active_lease(name)
        reconciler.journal.write("done", active, Operation.DELETE_LEASE, id="1")
        reconciler.journal.write("closed", active)

    monkeypatch.setattr(leasing, "lease", lease)
    monkeypatch.setattr(chain, "_release", release)
    monkeypatch.setattr(reconciler.journal, "_now", lambda: now)
    monkeypatch.setattr(chain, "time", SimpleNamespace(monotonic=iter(range(0, 10_000, 240)).__next__))


def test_the_used_and_the_predicted_service_units_of_a_lease_are_recorded(
    journaled_lease, make_reproduction, reconciler, tmp_path
):
    view = LineRecorder()
    reproduce(make_reproduction(), reconciler, view, lambda slot: None)
    (record,) = read_records(tmp_path)
    assert (record.used_s, record.before_request_s, record.run_s, record.setup_s) == (840.0, 30.0, 240.0, 570.0)
    assert (record.service_units(record.used_s), record.predicted_setup_s) == (pytest.approx(16 * 14 / 60), 3600.0)
    assert record.predicted_run_s > 0
    assert view.lines[-1] == record.in_words
    assert record.in_words.startswith("lease llm_cc: 3.73 service units, predicted ")


def test_the_predicted_setup_time_of_a_lease_is_that_of_earlier_leases_of_the_node_type(
    journaled_lease, make_reproduction, reconciler, tmp_path
):
    reproduce(make_reproduction(), reconciler, LineRecorder(), lambda slot: None)
    view, again = LineRecorder(), make_reproduction(choose_length=True)
    reproduce(again, reconciler, view, lambda slot: None)
    first, second = read_records(tmp_path)
    assert (first.predicted_setup_s, second.predicted_setup_s) == (3600.0, first.setup_s)
    assert (first.predicted_run_s, first.expected_run_s) == (second.expected_run_s,) * 2
    assert second.predicted_run_s == pytest.approx(first.run_s)
    assert abs(second.relative_error) < 0.001
    assert any(line.endswith("setup 9m (measured on 1 lease)") for line in view.lines)
    assert any(line.startswith("length of the lease: 30m, ") for line in view.lines)
    other = expected_times_on([replace(HOST, node_type="gpu_h100")], [suite_named("single_gpu_blip2")], tmp_path)
    assert other.leases == NO_LEASES


def test_a_lease_for_any_node_type_is_recorded_with_the_type_of_its_nodes(
    journaled_lease, make_reproduction, reconciler, tmp_path
):
    given = make_reproduction()
    requirements = replace(given.lease_request.requirements, node_type=None, gpu_model="A100")
    any_type = replace(given, lease_request=replace(given.lease_request, requirements=requirements))
    reproduce(any_type, reconciler, LineRecorder(), lambda slot: None)
    assert [one.node_type for one in read_records(tmp_path)] == [HOST.node_type]


@pytest.mark.parametrize("problem", [ConfigureFailed("disk full"), Interrupted("SIGINT"), KeyboardInterrupt()])
def test_the_lease_is_released_however_the_last_stage_ends(
    problem, recorded_stages, make_reproduction, reconciler, events, monkeypatch
):
    def fail(*_):
        raise problem

    monkeypatch.setattr(chain, "configure", fail)
    with pytest.raises(type(problem)):
        reproduce(make_reproduction(), reconciler, LineRecorder(), lambda slot: None)
    assert events == ["doctor", "lease", "release"]


@pytest.mark.parametrize("problem", [LeaseMismatch("held with node-2"), ForeignLease("somebody's")])
def test_an_unrelated_lease_of_the_same_name_is_not_released(
    problem, recorded_stages, make_reproduction, reconciler, events, monkeypatch
):
    def reject_request(*_, **__):
        raise problem

    reconciler.journal.open_lease("llm_cc", "CHI@UC")
    monkeypatch.setattr(leasing, "lease", reject_request)
    with pytest.raises(type(problem)):
        reproduce(make_reproduction(), reconciler, LineRecorder(), lambda slot: None)
    assert "release" not in events


def test_the_option_keep_leaves_the_lease_and_the_next_command_uses_it(
    recorded_stages, make_reproduction, reconciler, events
):
    asked: list[Any] = []
    reproduce(make_reproduction(keep=True), reconciler, LineRecorder(), asked.append)
    assert reconciler.journal.active_lease("llm_cc")
    reproduce(make_reproduction(keep=True), reconciler, LineRecorder(), asked.append)
    assert events == ["doctor", "lease", "configure", "run"] * 2
    assert len(asked) == 1


def test_a_dry_run_lists_the_stages_and_runs_no_stage(
    recorded_stages, make_reproduction, reconciler, events, monkeypatch
):
    monkeypatch.setattr(
        leasing,
        "planned_calls",
        lambda site, reconciler, lease_request: [f"blazar: create lease {lease_request.name}"],
    )
    lines = chain.planned_operations(make_reproduction(), reconciler)
    assert [line.partition(":")[0] for line in lines] == [
        "blazar",
        "ansible",
        "slurm on llm_cc",
        "release llm_cc",
        "time on 4 GPUs",
    ]
    assert chain.planned_operations(make_reproduction(keep=True), reconciler) == [*lines[:3], lines[4]]
    assert events == []
    with pytest.raises(LeaseTooLong, match="--max-hours 1h"):
        chain.planned_operations(make_reproduction(max_length=timedelta(hours=1)), reconciler)


def test_the_length_of_the_lease_is_chosen_from_the_times_of_its_rows(
    recorded_stages, make_reproduction, reconciler, monkeypatch
):
    lengths, created = [], leasing.lease

    def lease(site, reconciler, request, **options):
        lengths.append(request.requirements.length)
        return created(site, reconciler, request, **options)

    monkeypatch.setattr(leasing, "lease", lease)
    view = LineRecorder()
    reproduce(make_reproduction(choose_length=True), reconciler, view, lambda slot: None)
    assert lengths == [timedelta(hours=1.5)]
    assert any(line.startswith("length of the lease: 1h30m, ") for line in view.lines)
    assert any(
        "length of the lease: 1h30m, " in line
        for line in chain.planned_operations(make_reproduction(choose_length=True), reconciler)
    )


def test_a_chosen_length_above_the_budget_is_rejected_before_anything_is_leased(
    recorded_stages, make_reproduction, reconciler, events
):
    with pytest.raises(LeaseTooLong, match=r"--max-hours 1h: the lease would be 1h30m long"):
        reproduce(
            make_reproduction(choose_length=True, max_length=timedelta(hours=1)),
            reconciler,
            LineRecorder(),
            lambda slot: None,
        )
    assert events == ["doctor"]


def test_a_lease_too_short_for_its_rows_is_rejected(recorded_stages, make_reproduction, reconciler, events):
    short = make_reproduction()
    requirements = replace(short.lease_request.requirements, length=timedelta(seconds=1))
    short = replace(short, lease_request=replace(short.lease_request, requirements=requirements))
    with pytest.raises(LeaseTooShort, match="allowed: --hours 1h30m"):
        reproduce(short, reconciler, LineRecorder(), lambda slot: None)
    assert events == ["doctor"]


def test_a_lease_longer_than_the_budget_is_rejected_before_any_request(
    recorded_stages, make_reproduction, reconciler, events
):
    with pytest.raises(InputError, match=r"--max-hours 2h: the lease would be 3h long"):
        reproduce(make_reproduction(max_length=timedelta(hours=2)), reconciler, LineRecorder(), lambda slot: None)
    assert events == []


def test_a_failed_check_of_doctor_ends_the_command_and_is_reported_with_a_fix(
    recorded_stages, make_reproduction, reconciler, events, monkeypatch
):
    monkeypatch.setattr(chain, "check_site", lambda *_: [Check("quota", "failed", "delete a server")])
    with pytest.raises(InputError, match="quota: delete a server"):
        reproduce(make_reproduction(), reconciler, LineRecorder(), lambda slot: None)
    assert events == []


def test_nothing_is_leased_if_every_row_has_its_result(
    recorded_stages, make_reproduction, reconciler, events, monkeypatch
):
    monkeypatch.setattr(PreparedRun, "rows_left", lambda prepared: [])
    monkeypatch.setattr(chain, "report_run", lambda prepared: "reported")
    assert reproduce(make_reproduction(), reconciler, LineRecorder(), lambda slot: None) == ["reported"]
    assert events == ["doctor"]


def test_if_the_lease_ended_itself_or_was_deleted_the_command_ends_and_says_where_results_are(
    recorded_stages, make_reproduction, reconciler, events, monkeypatch
):
    opened = reconciler.journal.open_lease("llm_cc", "CHI@UC")
    reconciler.journal.write("done", opened, Operation.CREATE_LEASE, id="1", start=NOW, end=NOW)
    ended = end_when_idle_data(EndWhenIdle(timedelta(minutes=30), "me@host:there"))
    reconciler.journal.write("done", opened, Operation.CREATE_CREDENTIAL, id="c", **ended)
    monkeypatch.setattr("provision.leasing.release.connect_to_site_of", lambda *_: SimpleNamespace(leases=lambda: []))
    with pytest.raises(
        LeaseEnded, match=r"its results are at me@host:there\), or .*; to fetch results: rsync -a me@host:there/ res"
    ):
        reproduce(make_reproduction(), reconciler, LineRecorder(), lambda slot: None)
    assert events == ["doctor", "release"]
    reproduce(make_reproduction(), reconciler, LineRecorder(), lambda slot: None)
    assert events[2:] == ["doctor", "lease", "configure", "run", "release"]


def test_the_node_is_set_up_to_end_its_lease_before_it_is_configured(
    recorded_stages, make_reproduction, reconciler, events, monkeypatch
):
    monkeypatch.setattr(chain, "set_up_end_when_idle", lambda *given: events.append(given[-1]))
    asked = make_reproduction()
    end_when_idle = EndWhenIdle(timedelta(minutes=30))
    asked = replace(asked, lease_request=replace(asked.lease_request, end_when_idle=end_when_idle))
    reproduce(asked, reconciler, LineRecorder(), lambda slot: None)
    assert events == ["doctor", "lease", end_when_idle, "configure", "run", "release"]


def test_without_confirmation_nothing_is_leased(recorded_stages, make_reproduction, reconciler, events):
    def reject(slot):
        raise InputError("needs --yes")

    with pytest.raises(InputError):
        reproduce(make_reproduction(), reconciler, LineRecorder(), reject)
    assert events == ["doctor"]


def test_the_option_versions_chooses_the_image_of_the_node_and_the_versions_of_the_rows(tmp_path, monkeypatch):
    """Fakes: the site, and the reproduction itself."""
    asked = []

    def noted(wanted, *_):
        asked.append(wanted)
        raise InputError("seen")

    site = SimpleNamespace(name="CHI@UC", user=lambda: "cc")
    monkeypatch.setattr(sites, "connect_to", lambda *_: site)
    monkeypatch.setattr(signals, "interrupt_on_stop_signals", lambda: None)
    monkeypatch.setenv("TESTBED_LEDGER", str(tmp_path / "ledger"))
    monkeypatch.setattr(chain, "reproduce", noted)
    new_key(tmp_path / "key")
    assert main(["reproduce", "--versions", "as-taught", "--key", str(tmp_path / "key"), "--for", "single"]) == 2
    (wanted,) = asked
    assert wanted.setup.image_variant == "as-taught"
    assert [options.image_variant for options in wanted.run_options] == ["as-taught", "as-taught"]
