"""Machines that answer are set up: driver, Docker, the GPU toolkit, Slurm, the image. By the playbook in ansible/.

Running it again goes on where it was and changes nothing that is right already. The whole of what Ansible said is kept
in a log; nothing secret is in it, nor in what is raised or returned.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from provision.configure.build_context import commit, data_folder, pack
from provision.errors import ConfigureFailed, NotReached
from provision.leasing.journal import Machine, default_folder
from provision.models import ImageVariant
from provision.ssh.login import Login

ANSIBLE = data_folder("ansible")
PLAYBOOK = ANSIBLE / "site.yml"
FACTS = "/etc/llm-testbed/node.json"
SAID_LENGTH = 600
REMEDIES = {
    "no space left on device": "free some space there (docker system prune)",
    "masked": "let the service start there (sudo systemctl unmask NAME)",
    "unable to start service": "log in and see what `systemctl status` and `journalctl -xe` say",
    "dpkg frontend lock": "another program installs packages there; wait until it is done",
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Setup:
    """What machines are set up with. Paths are on this computer.

    ``source`` is where the image comes from: ``build`` it there, ``pull`` the ``reference``, ``load`` the ``archive``.
    A build asks ``pip_index`` (a password may be in it), trusting ``ca_bundle``; or the archive ``wheels`` has all.
    ``base_image`` is used instead of the flavour's own, from ``base_archive`` where no registry has it. ``cdi_spec``
    describes GPUs that are stand-ins. ``extra`` are variables of the roles (their defaults/main.yml).
    """

    image_variant: ImageVariant = "current"
    source: Literal["build", "pull", "load"] = "build"
    reference: str = ""
    archive: Path | None = None
    base_image: str = ""
    base_archive: Path | None = None
    pip_index: str = ""
    ca_bundle: Path | None = None
    wheels: Path | None = None
    cdi_spec: Path | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ConfiguredNode:
    """What came of it: ``facts`` are each machine's node.json, ``changed`` the tasks that changed something (with
    ``check``: would), ``log`` all that Ansible said."""

    facts: dict[str, dict[str, Any]]
    changed: tuple[str, ...]
    log: Path


def configure(
    machines: Sequence[Machine], setup: Setup, say: Say, check: bool = False, logs: Path | None = None
) -> ConfiguredNode:
    """Set machines up, the first one as the controller of their Slurm; with ``check`` only find out what would change.

    ConfigureFailed where a task fails; NotReached where a machine does not answer; KeyboardInterrupt where it was told
    to stop, by SIGINT or SIGTERM.
    """
    log = (logs or default_folder() / "configure") / f"{datetime.now(UTC):%Y%m%dT%H%M%S}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="testbed-configure-") as scratch, log.open("w") as written:
        told = _Told(say, written.write)
        status = _play(Path(scratch), machines, _variables(setup, Path(scratch)), told, check)
    if status == "canceled":
        raise KeyboardInterrupt
    if status != "successful":
        raise told.problem(log)
    return ConfiguredNode({machine.server: _facts(machine.login) for machine in machines}, tuple(told.changed), log)


class _Told:
    """What Ansible tells while it works: progress is passed on, changes and the first failure are kept."""

    def __init__(self, say: Say, write: Callable[[str], object]) -> None:
        self._say, self._write = say, write
        self._roles = _roles()
        self.changed: list[str] = []
        self._failure: ConfigureFailed | NotReached | None = None

    def event(self, event: dict[str, Any]) -> bool:
        """Take an event of ansible-runner; none of them is kept by it."""
        if event.get("stdout"):
            self._write(f"{event['stdout']}\n")
        data = event.get("event_data", {})
        where = f"{data.get('role', 'facts')}: {data.get('task')} ({data.get('host')})"
        match event["event"]:
            case "runner_on_start":
                self._say(f"{self._place(data)}{where}")
            case "runner_on_ok" if data["res"].get("changed"):
                self.changed.append(where)
            case "runner_on_failed" | "runner_item_on_failed" if not data.get("ignore_errors"):
                self._failure = self._failure or ConfigureFailed(f"{data['host']}: {where}: {_said(data['res'])}")
            case "runner_on_unreachable":
                self._failure = self._failure or NotReached(f"{data['host']}: {_said(data['res'])}")
        return False

    def problem(self, log: Path) -> ConfigureFailed | NotReached:
        failure = self._failure or ConfigureFailed("Ansible failed")
        remedy = next((remedy for sign, remedy in REMEDIES.items() if sign in str(failure).lower()), "put that right")
        return type(failure)(f"{failure}; {remedy}, then the same command goes on from there; all of it: {log}")

    def _place(self, data: dict[str, Any]) -> str:
        """How far it is, in roles."""
        role = data.get("role")
        return f"{self._roles.index(role) + 1}/{len(self._roles)} " if role in self._roles else ""


def _play(scratch: Path, machines: Sequence[Machine], variables: dict[str, Any], told: _Told, check: bool) -> str:
    """Run the playbook; ansible-runner's word for how it ended."""
    import ansible_runner

    inventory, extra = scratch / "inventory.json", scratch / "variables.json"
    inventory.write_text(json.dumps({"nodes": {"hosts": {one.server: _host(one.login) for one in machines}}}))
    extra.touch(mode=0o600)
    extra.write_text(json.dumps(variables))
    done = ansible_runner.run(
        private_data_dir=str(scratch),
        playbook=str(PLAYBOOK),
        inventory=str(inventory),
        cmdline=f"--extra-vars @{extra}{' --check' if check else ''}",
        envvars={
            "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOST_KEY_CHECKING": "True",  # ansible-runner takes it back otherwise, whatever ansible.cfg says
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(scratch),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        },
        event_handler=told.event,
        quiet=True,
    )
    return done.status


def _host(login: Login) -> dict[str, str]:
    """An inventory's host; strict about its key, as whoever else logs in to it."""
    return {
        "ansible_host": login.host,
        "ansible_user": login.user,
        "ansible_ssh_private_key_file": str(login.key),
        "ansible_ssh_common_args": " ".join(one for one in login.arguments() if one.startswith("-o")),
    }


def _variables(setup: Setup, scratch: Path) -> dict[str, Any]:
    """The roles' variables; those that are left at their defaults are left out."""
    context = scratch / "context.tar.gz"
    if setup.source == "build":
        pack(context)
    wanted = {
        "images_flavour": setup.image_variant,
        "images_source": setup.source,
        "images_reference": setup.reference,
        "images_archive": setup.archive,
        "images_context": context if setup.source == "build" else None,
        "images_commit": commit(),
        "images_base": setup.base_image,
        "images_base_archive": setup.base_archive,
        "images_pip_index": setup.pip_index,
        "images_ca_bundle": setup.ca_bundle,
        "images_wheels": setup.wheels,
        "container_toolkit_cdi_spec": setup.cdi_spec,
    }
    return {name: str(value) for name, value in wanted.items() if value} | dict(setup.extra)


def _facts(login: Login) -> dict[str, Any]:
    """The machine's node.json; nothing where it has none yet."""
    done = subprocess.run([*login.arguments(), "cat", FACTS], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def _roles() -> list[str]:
    """The playbook's roles in their order."""
    return [role["role"] for play in yaml.safe_load(PLAYBOOK.read_text()) for role in play["roles"]]


def _said(result: dict[str, Any]) -> str:
    """What a failed task said, in one line: its message, and the end of what its command wrote."""
    words = " ".join(str(result.get(part) or "") for part in ("msg", "stderr" if result.get("stderr") else "stdout"))
    line = " ".join(words.split())
    return line if len(line) <= SAID_LENGTH else f"{line[: SAID_LENGTH // 3]} ... {line[-SAID_LENGTH * 2 // 3 :]}"
