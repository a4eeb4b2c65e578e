"""The crontab, the systemd units and the workflow that the project ships run without changes.

Fake: the Python of the environment, which writes its arguments and where it runs.
"""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from experiments.system.files import CODE_FOLDER
from tests.support.needs import need

SCHEDULES = CODE_FOLDER / "docs" / "schedules"
WORKFLOW = CODE_FOLDER / ".github" / "workflows" / "semester.yml"
UNITS = [SCHEDULES / f"testbed-semester.{kind}" for kind in ("service", "timer")]
BARE = {"PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", "LOGNAME": "course"}
"""Environment variables that cron(8) and systemd set for a command, in addition to HOME."""


@pytest.fixture
def home(tmp_path) -> Path:
    """Create a home folder with a checkout and the environment that its Makefile creates."""
    checkout = tmp_path / "llm-testbed"
    checkout.mkdir()
    for path in CODE_FOLDER.iterdir():
        if path.name not in ("results", ".git", ".venv", "site"):
            (checkout / path.name).symlink_to(path)
    shown = subprocess.run(
        ["make", "help"], cwd=checkout, env=BARE | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    ).stdout
    environment = Path(re.search(r"environment: ([^,]*),", shown)[1])
    assert environment.is_relative_to(tmp_path)
    (environment / "bin").mkdir(parents=True)
    (environment / ".made").touch()
    (environment / "bin" / "python").write_text(f'#!/bin/sh\necho "$PWD $@" >> {tmp_path}/CALLS.txt\n')
    (environment / "bin" / "python").chmod(0o755)
    return tmp_path


def sh(line: str, home: Path, cwd: Path, **variables: str) -> str:
    """Run a line with sh, without a terminal and with few variables; return the arguments that Python got."""
    ran = subprocess.run(
        ["/bin/sh", "-ec", line],
        cwd=cwd,
        env=BARE | {"HOME": str(home)} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return (home / "CALLS.txt").read_text().strip()


def cron_line() -> str:
    (line,) = [line for line in (SCHEDULES / "crontab").read_text().splitlines() if not line.startswith("#")]
    return line


def test_the_crontab_runs_with_the_few_variables_of_cron(home):
    *when, command = cron_line().split(maxsplit=5)
    assert all(re.fullmatch(r"\*|\d+", field) for field in when)
    assert "%" not in command, "cron(8) ends the command there"
    checkout = home / "llm-testbed"
    assert sh(command, home, home) == f"{checkout} -m experiments semester --results results/semester"
    assert (checkout / "results" / "semester.log").is_file()


def test_the_units_of_systemd_are_valid_and_run_the_check(home, tmp_path):
    need(["systemd-analyze"], "systemd")
    ran = subprocess.run(
        ["systemd-analyze", "verify", "--user", *UNITS],
        env=BARE | {"HOME": str(home), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")
    unit = dict(re.findall(r"^(\w+)=(.*)$", UNITS[0].read_text(), re.MULTILINE))
    folder = Path(unit["WorkingDirectory"].replace("%h", str(home)))
    assert sh(unit["ExecStart"], home, folder) == f"{folder} -m experiments semester --results results/semester"


def test_every_command_of_the_github_workflow_can_be_run(home):
    job = yaml.safe_load(WORKFLOW.read_text())["jobs"]["semester"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert len(commands) == 1
    checkout = home / "llm-testbed"
    called = sh(commands[0], home, checkout, GITHUB_STEP_SUMMARY=str(home / "summary.md"), ARGS="--versions current")
    expected = f"--summary {home}/summary.md --junit results/semester.xml --versions current"
    assert called == f"{checkout} -m experiments semester --results results/semester {expected}"


def test_the_github_workflow_stores_the_history_even_if_a_status_changed():
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["semester"]["steps"]
    saved = next(step for step in steps if "cache/save" in step.get("uses", ""))
    assert saved["if"] == "always()"
    assert "results/semester" in saved["with"]["path"].split()


@pytest.mark.parametrize("wrong", ["OnCalendar=Mun *-*-* 03:17"])
def test_an_invalid_systemd_unit_is_detected(wrong, tmp_path):
    need(["systemd-analyze"], "systemd")
    for unit in UNITS:
        text = unit.read_text().replace("OnCalendar=Mon *-*-* 03:17", wrong)
        (tmp_path / unit.name).write_text(text)
    command = ["systemd-analyze", "verify", "--user", *(tmp_path / unit.name for unit in UNITS)]
    assert subprocess.run(command, env=BARE | {"XDG_RUNTIME_DIR": str(tmp_path)}, capture_output=True).returncode
