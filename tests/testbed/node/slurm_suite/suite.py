"""Run the tests of Slurm's developers, testsuite/expect, on a node that the roles have set up.

    python -m pytest -s tests/testbed/node/slurm_suite/suite.py

pytest does not collect this file by itself, because the tests take hours. The sources have the version of the node's
Slurm and come from its package archive. The user ``cc`` runs the tests one by one, each for at most LIMIT_S.
TESTBED_SLURM_TESTS: regular expression of their numbers (default: APPLICABLE). results.json keeps the last outcome of
each. For a test that fails or exceeds its time, differences.yaml names how the node differs from what the test expects;
a test without such a reason is an error. A skipped test gives its own reason.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from provision.configure.playbook import ConfigurationResult
from provision.ssh.login import Login
from tests.testbed.node.conftest import SetUp
from tests.testbed.node.node import Node
from tests.testbed.outcomes import Outcome, differences, unexplained, write_outcomes

HERE = Path(__file__).parent
COMMAND = "python -m pytest -s tests/testbed/node/slurm_suite/suite.py"
RESULTS = HERE / "results.json"
ROLES = ["precheck", "nvidia_driver", "slurm"]
SOURCES = "/var/lib/slurm-sources"
APPLICABLE = r"(1|2|4|5|6|9|15|17|28|39)\."
"""srun, scontrol, sinfo, squeue, scancel, many jobs at once, salloc, sbatch, arrays of jobs, and GPUs."""
LIMIT_S = 900
SKIPPED, TIMED_OUT = 255, 124
WITHOUT_OWN_REASON = ("failed", "timed out")
PREPARE = f"""
export DEBIAN_FRONTEND=noninteractive
sed 's/^deb /deb-src /' /etc/apt/sources.list > /etc/apt/sources.list.d/sources.list
apt-get update --quiet=2
apt-get install --quiet=2 --yes --no-install-recommends expect gcc libc6-dev libslurm-dev bc xz-utils bzip2
mkdir -p {SOURCES} && cd {SOURCES}
apt-get source --download-only --quiet=2 slurm-wlm
tar --extract --strip-components=1 --file *.orig.tar.*
printf 'SlurmSourceDir={SOURCES}\\nSlurmBuildDir={SOURCES}\\nSlurmInstallDir=/usr\\nSlurmConfigDir=/etc/slurm\\n' \\
  > testsuite/testsuite.conf
chown --recursive cc: {SOURCES}
"""


@pytest.fixture(scope="module")
def configured(node: Node, set_up: SetUp) -> ConfigurationResult:
    configured = set_up([node], roles=ROLES)
    node.run("bash", "-eu", "-c", PREPARE)
    return configured


@pytest.mark.timeout(0)
def test_the_tests_of_slurm_s_developers_pass_on_a_node_that_the_roles_have_set_up(
    node: Node, login: Callable[[Node], Login], configured: ConfigurationResult, tmp_path: Path
) -> None:
    print(f"output of the tests: {tmp_path}")
    version = node.run("dpkg-query", "--show", "--showformat=${Version}", "slurmctld")
    chosen = os.environ.get("TESTBED_SLURM_TESTS", APPLICABLE)
    for outcome in run_all(login(node), chosen, tmp_path):
        kept = store_outcomes(version, outcome)
    assert unexplained(kept) == []


def store_outcomes(version: str, *outcomes: Outcome) -> list[Outcome]:
    """Write outcomes with their reasons to the results, in which those of other tests stay. Return all outcomes."""
    reasons = differences(HERE)
    stored = json.loads(RESULTS.read_text())["tests"] if RESULTS.exists() else []
    found = {one["test"]: one for one in [*stored, *outcomes]}
    for name, one in found.items():
        if one["outcome"] in WITHOUT_OWN_REASON:
            one["reason"] = reasons.get(name, "")
    kept = sorted(found.values(), key=lambda one: _order(one["test"]))
    write_outcomes(RESULTS, COMMAND, {"slurm": version}, kept)
    return kept


def run_all(login: Login, wanted: str, outputs: Path) -> Iterator[Outcome]:
    """Run the tests whose numbers match ``wanted``; print and yield each outcome, and write the output of each test."""
    found = over_ssh(login, "ls").stdout.split()
    numbers = sorted((name.removeprefix("test") for name in found if re.fullmatch(r"test\d+\.\d+", name)), key=_order)
    for number in (number for number in numbers if re.match(wanted, number)):
        done = over_ssh(login, f"timeout --kill-after=10 {LIMIT_S} expect test{number}")
        (outputs / f"test{number}.log").write_text(done.stdout)
        over_ssh(login, "scancel --user=$USER")
        outcome = {0: "passed", SKIPPED: "skipped", TIMED_OUT: "timed out"}.get(done.returncode, "failed")
        one = {"test": number, "outcome": outcome}
        if outcome == "skipped":
            one["reason"] = last_warning(done.stdout)
        elif outcome != "passed":
            one["last"] = last_warning(done.stdout)
        print(one, flush=True)
        yield one


def over_ssh(login: Login, command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in the folder of the tests as the node's user."""
    inside = f"cd {SOURCES}/testsuite/expect && {command}"
    return subprocess.run([*login.arguments(), inside], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def last_warning(output: str) -> str:
    """Return the last warning or error of a test, without colors, times and places; '' if it printed none."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", output)
    found = re.findall(r"\b(?:Warning|Error|Fatal)\s+(.*?)(?: \([\w@.]+:\d+.*\))?\s*$", plain, re.MULTILINE)
    return found[-1] if found else ""


def _order(number: str) -> tuple[int, ...]:
    return tuple(int(part) for part in number.split("."))
