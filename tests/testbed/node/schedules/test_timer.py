"""The timer of `make semester` in a node's systemd, with the units as the project ships them. Fake: make."""

import os
import shutil
import time
from pathlib import Path

import pytest

from experiments.system.files import CODE_FOLDER
from tests.support.processes.waiting import wait_for
from tests.testbed.node.node import Node

UNITS = [CODE_FOLDER / "docs" / "schedules" / f"testbed-semester.{kind}" for kind in ("service", "timer")]
NOTIFY = "json://localhost"
FORTNIGHT_S = 14 * 24 * 3600
ACCURACY_S = 60.0
"""How late systemd may start a timer's service."""


@pytest.fixture
def installed(node: Node) -> Path:
    """Install the units in the node's systemd and a fake make, which writes what it gets; return root's home."""
    home = node.root / "root"
    (home / "llm-testbed").mkdir()
    (home / ".config").mkdir(exist_ok=True)
    (home / ".config" / "llm-testbed.env").write_text(f"TESTBED_NOTIFY={NOTIFY}\n")
    for unit in UNITS:
        shutil.copy(unit, node.root / "etc" / "systemd" / "system")
    make = node.root / "usr" / "bin" / "make"
    make.write_text('#!/bin/sh\necho "$PWD $TESTBED_NOTIFY $@" >> /root/calls.txt\n')
    make.chmod(0o755)
    node.run("systemctl", "daemon-reload")
    return home


def test_the_timer_makes_up_for_a_missed_check(node: Node, installed: Path) -> None:
    stamp = node.root / "var" / "lib" / "systemd" / "timers" / "stamp-testbed-semester.timer"
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.touch()
    os.utime(stamp, (time.time() - FORTNIGHT_S,) * 2)
    node.run("systemctl", "enable", "--now", "testbed-semester.timer")
    wait_for((installed / "calls.txt").is_file, 2 * ACCURACY_S)
    wait_for(lambda: node.run("systemctl", "show", "-P", "ActiveState", "testbed-semester").strip() == "inactive")
    assert node.run("systemctl", "show", "-P", "Result", "testbed-semester").strip() == "success"
    assert (installed / "calls.txt").read_text() == f"/root/llm-testbed {NOTIFY} semester\n"
    assert "Mon" in node.run("systemctl", "list-timers", "testbed-semester.timer")
