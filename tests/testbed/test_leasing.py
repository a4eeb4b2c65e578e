"""Leasing on bare metal: from a wish to a machine that answers SSH, and back."""

import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from provision import releasing
from provision.errors import ExtensionRefused, NotEnough, NotOurs, NoSuchHost
from provision.leasing import lease
from tests.testbed.conftest import A100, left_at

HOUR = timedelta(hours=1)


def test_a_wish_becomes_a_machine_that_answers_and_release_leaves_nothing(site, desk, order, sshd):
    leased = lease(site, desk, order())
    assert leased.lease.status == "ACTIVE"
    assert leased.lease.name == "llm_cc"
    assert leased.image_id == site.image_id()
    (machine,) = leased.machines
    assert subprocess.run([*machine.command.split(), "echo", "here"], capture_output=True, text=True).stdout == "here\n"
    holding = releasing.held(desk, "llm_cc")
    state = releasing.state(site, desk, holding)
    assert [server.name for server in state.servers] == ["node-llm-cc"]
    assert state.ips == (machine.ip,)
    assert all(thing.mark == holding.mark for thing in left_at(site))
    releasing.release(site, desk, holding)
    assert left_at(site) == []
    assert desk.ledger.holdings() == {}
