"""Random histories of leasing: a state machine over an unreliable site in memory.

A history is a sequence of commands, of actions of other users, and of the outcome of each request: answered, lost,
late, rejected, or the death of the program. In every history there is at most one lease, each command reports what
still costs, and the resources of other users remain. Fakes: the site, the clock, SSH.
"""

import tempfile
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from hypothesis import strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from provision.errors import OtherAccount, ProvisionError, RequestRejected, Unreachable
from provision.leasing.cost import report_cost_on_exit, running_cost
from provision.leasing.journal import Journal
from provision.leasing.lease import lease
from provision.leasing.reconciler import ATTEMPTS, Reconciler
from provision.leasing.release import extend, release, release_on_exit
from provision.leasing.request import LeaseRequest
from provision.models import Address, Lease, Requirements, Server
from provision.ssh.login import KeyPair
from tests.support.leasing.fake_site import HOUR, IDENTITY, NOW, FakeClock, FakeSite, hosts_of

NAME = "llm_cc"
PROJECT = replace(IDENTITY, project="CHI-000002", project_id="p2")
REQUEST_OUTCOMES = strategies.sampled_from(
    ["done"] * 6 + ["not sent", "answer lost", "busy", "rejected", "killed before", "killed after", "down"]
)
OUTCOME_LISTS: strategies.SearchStrategy[list[str]] = strategies.just([]) | strategies.lists(
    REQUEST_OUTCOMES, max_size=12
)
CHANGES = (
    *("create_lease", "delete_lease", "extend_lease", "create_server", "delete_server"),
    *("upload_key", "delete_key", "allocate_address", "attach_address", "release_address"),
)


class Killed(BaseException):
    """The simulated death of the program."""


@dataclass
class UnreliableSite(FakeSite):
    """A site where each request has its planned outcome. A lease ends at its end time, and its servers with it."""

    clock: FakeClock = field(default_factory=FakeClock)
    plan: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__post_init__()
        for name in CHANGES:
            setattr(self, name, self._request_with_planned_outcome(getattr(self, name)))

    def leases(self):
        ended = [one.id for one in self.held if one.end <= self.clock.now()]
        return [replace(one, status="TERMINATED") if one.id in ended else one for one in self.held]

    def servers(self):
        going = {one.tag for one in self.leases() if one.status == "ACTIVE"}
        self.booted = [one for one in self.booted if one.tag in going or not one.tag]
        return super().servers()

    def _request_with_planned_outcome(self, change):
        def run_planned_outcome(*arguments):
            fate = self.plan.pop(0) if self.plan else "done"
            if fate == "down":
                self.plan[:0] = ["not sent"] * ATTEMPTS
            if fate in ("not sent", "down"):
                raise Unreachable("blazar does not answer")
            if fate == "busy":
                raise Unreachable("blazar asks to wait", 90)
            if fate == "rejected":
                raise RequestRejected("blazar rejects the request")
            if fate == "killed before":
                raise Killed
            answer = change(*arguments)
            if fate == "answer lost":
                raise Unreachable("blazar does not answer")
            if fate == "killed after":
                raise Killed
            return answer

        return run_planned_outcome


class Leasing(RuleBasedStateMachine):
    """Commands on one lease by one user, and others who use the same project."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = FakeClock()
        self.site = UnreliableSite(hosts_of(4, su_per_hour=16.0), clock=self.clock)
        theirs = Lease("theirs", "their lease", "ACTIVE", NOW, NOW + timedelta(days=6), ("r",), ("4",), owner="2")
        server, address = Server("theirs", "node", "ACTIVE", owner="2"), Address("theirs", "192.0.2.99")
        self.others = [theirs, server, address]
        self.site.held, self.site.booted, self.site.taken = [theirs], [server], [address]
        self.messages: list[str] = []
        self.ended = ""

    def reconciler(self):
        return Reconciler(Journal(Path(self.folder.name), self.clock.now), self.clock, self.messages.append)

    def active(self):
        return self.reconciler().journal.active_lease(NAME)

    def tagged_resources(self):
        return [one for one in self.site.remaining_resources() if one not in self.others]

    def command(self, plan, act):
        """Run a command as a separate program, with these outcomes of its requests."""
        self.messages.clear()
        self.site.plan, reconciler = list(plan), self.reconciler()
        try:
            with report_cost_on_exit(reconciler, NAME):
                act(reconciler)
            self.ended = "done"
        except ProvisionError as problem:
            self.ended = type(problem).__name__
        except Killed:
            self.ended = "killed"
        self.site.plan = []

    def request(self):
        requirements = Requirements(3 * HOUR)
        return LeaseRequest(NAME, "node", requirements, KeyPair(Path("key"), "ssh-ed25519 A"), starts_now=True)

    @rule(plan=OUTCOME_LISTS)
    def lease(self, plan):
        self.command(plan, lambda reconciler: lease(self.site, reconciler, self.request()))
        if self.ended == "done":
            assert len(self.site.servers()) == 2, "a lease command that succeeded leaves a server"

    @rule(plan=OUTCOME_LISTS)
    def lease_and_release(self, plan):
        def act(reconciler):
            with release_on_exit(self.site, reconciler, NAME):
                lease(self.site, reconciler, self.request())

        self.command(plan, act)
        if self.ended == "done":
            assert self.tagged_resources() == []

    @rule(plan=OUTCOME_LISTS)
    def release(self, plan):
        if active := self.active():
            self.command(plan, lambda reconciler: release(self.site, reconciler, active))
            if self.ended == "done":
                assert self.tagged_resources() == [], "a release that succeeded leaves no resources"

    @rule(place=strategies.integers(0, 5))
    def release_with_one_rejected_request(self, place):
        """A rejection stops nothing else, and the request is sent once more after the others."""
        if active := self.active():
            plan = ["done"] * place + ["rejected"]
            self.command(plan, lambda reconciler: release(self.site, reconciler, active))
            assert (self.ended, self.tagged_resources()) == ("done", [])

    @rule(plan=OUTCOME_LISTS, hours=strategies.integers(1, 4))
    def extend(self, plan, hours):
        if not self.active():
            self.lease([])
        if active := self.active():
            before = [one.end for one in self.site.held if one.tag]
            self.command(plan, lambda reconciler: extend(self.site, reconciler, active, hours * HOUR))
            after = [one.end for one in self.site.held if one.tag]
            assert all(new - old in (timedelta(), hours * HOUR) for old, new in zip(before, after, strict=True))

    @rule()
    def another_account_changes_nothing(self):
        if active := self.active():
            before = self.site.remaining_resources()
            elsewhere = UnreliableSite(account=PROJECT, clock=self.clock)
            self.command([], lambda reconciler: release(elsewhere, reconciler, active))
            assert (self.ended, self.site.remaining_resources()) == (OtherAccount.__name__, before)
            assert self.active() == active

    @rule(hours=strategies.integers(1, 5))
    def time_passes(self, hours):
        self.clock.sleep(hours * 3600)

    @rule(hours=strategies.integers(1, 3))
    def somebody_extends_our_lease_in_the_dashboard(self, hours):
        self.site.held = [replace(one, end=one.end + hours * HOUR) if one.tag else one for one in self.site.held]

    @rule(kind=strategies.sampled_from(["held", "booted", "taken", "uploaded"]))
    def somebody_deletes_what_is_ours_in_the_dashboard(self, kind):
        setattr(self.site, kind, [one for one in getattr(self.site, kind) if not one.tag])

    @invariant()
    def there_is_at_most_one_lease(self):
        assert len([one for one in self.site.leases() if one.tag and one.status == "ACTIVE"]) <= 1

    @invariant()
    def nothing_of_others_is_touched(self):
        assert [one for one in self.site.remaining_resources() if one in self.others] == self.others

    @invariant()
    def every_cost_is_reported(self):
        for one in self.site.leases():
            if one.tag and one.status == "ACTIVE":
                active = self.active()
                assert active, "a lease continues although its record is closed"
                assert active.tag == one.tag
                line = running_cost(self.reconciler(), active)
                assert line, "a lease continues, and the journal does not report its cost"

    @invariant()
    def a_command_that_leaves_a_cost_reports_it(self):
        going = [one for one in self.site.leases() if one.tag and one.status == "ACTIVE"]
        if self.ended not in ("", "killed") and self.messages and going:
            assert any("testbed release" in line for line in self.messages)

    def teardown(self):
        """Without faults, a release succeeds and leaves nothing, whatever happened before."""
        if active := self.active():
            self.command([], lambda reconciler: release(self.site, reconciler, active))
            assert self.ended == "done"
        assert self.tagged_resources() == []
        self.folder.cleanup()
