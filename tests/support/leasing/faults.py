"""Faults for the code of leasing. Tests insert them to show that random histories detect them."""

import os
from dataclasses import replace

import pytest

from provision.leasing import boot, cost, journal, reconciler, release, resources

Fault = tuple[object, str, object]
"""A module or class, the name of one of its attributes, and the faulty replacement of this attribute."""


def without_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed up leasing: every server answers SSH at once, fsync does nothing, each line of a journal is parsed once."""
    parse = journal.Journal._parse_line
    parsed: dict[str, journal.Entry | None] = {}

    def parse_once(self: journal.Journal, line: str, number: int) -> journal.Entry | None:
        if line not in parsed:
            parsed[line] = parse(self, line, number)
        return parsed[line]

    monkeypatch.setattr(boot, "try_login", lambda login: None)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(journal.Journal, "_parse_line", parse_once)


def _create_without_search(self, active_lease, operation, find, create, outcome, **intent):
    """Create a resource without a search for one that an earlier request, whose response was lost, may have created."""
    resource = self._retrying()(lambda: self.perform(active_lease, operation, create, **intent))
    self.journal.write("done", active_lease, operation, **outcome(resource))
    return resource


def _stop_at_first_rejection(reconciler, active_lease, kinds):
    """Stop a release at the first rejection."""
    for kind in kinds:
        resources.delete_tagged(reconciler, active_lease, kind)
    return []


def _kinds_without_addresses(site):
    return [kind for kind in resources.all_kinds(site) if "address" not in kind.name]


def _write_no_intent(self, event, *arguments, _write=journal.Journal.write, **data):
    if event != "intent":
        _write(self, event, *arguments, **data)


def _extend_from_now(site, reconciler, active_lease, by, _extension=release.planned_extension):
    lease, _ = _extension(site, reconciler, active_lease, by)
    return lease, reconciler.clock.now() + by


def _delete_all(reconciler, active_lease, kind, name=None, _delete=resources.delete_tagged):
    """Delete all resources, including those without the tag of the lease."""
    tag = active_lease.tag
    everybodys = replace(kind, list=lambda: [replace(one, tag=tag, owner="") for one in kind.list()])
    _delete(reconciler, active_lease, everybodys, name)


INJECTED: dict[str, Fault] = {
    "a lost response is requested again": (reconciler.Reconciler, "find_or_create", _create_without_search),
    "any account may release": (release, "verify_account", lambda *_: None),
    "what remains is not asked": (release, "list_resources", lambda *_: []),
    "a rejection ends the release": (release, "_delete_kinds", _stop_at_first_rejection),
    "addresses are forgotten": (release, "all_kinds", _kinds_without_addresses),
    "intents are not recorded": (journal.Journal, "write", _write_no_intent),
    "an extension counts from now": (release, "planned_extension", _extend_from_now),
    "others' resources are deleted": (release, "delete_tagged", _delete_all),
    "costs are not reported": (cost, "running_cost", lambda *_: ""),
}
