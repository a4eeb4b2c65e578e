"""Configure reachable machines with the playbook in ansible/: driver, Docker, GPU toolkit, Slurm, image.

The playbook is idempotent: a second run changes only what is not configured yet. A log file contains Ansible's complete
output. The log, the errors and the results contain no secrets.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml

from provision.choices import ImageVariant
from provision.configure.build_context import checkout_commit, packaged_folder, write_build_context
from provision.errors import ConfigureFailed, NotReached
from provision.folders import state_folder
from provision.leasing.journal import Machine
from provision.ssh.login import Login
from provision.ssh.ssh_shell import SshShell
from provision.temporary import TemporaryFolder

ANSIBLE = packaged_folder("ansible")
PLAYBOOK = ANSIBLE / "site.yml"
END_WHEN_IDLE_PLAYBOOK = ANSIBLE / "end-when-idle.yml"
FACTS_FILE = "/etc/llm-testbed/node.json"
"""File on each machine with its image IDs, driver, GPUs and hardware; the role ``images`` writes it."""
SOCKET_PARENT = Path("/tmp")  # noqa: S108 - the sockets are in a new folder under it
"""Where to create the folder of Ansible's SSH sockets. TMPDIR may be too long: a socket's path is at most 108 bytes."""
OUTPUT_LENGTH = 600
"""Maximum number of characters of a task's output in a message."""
FIXES = {
    "no space left on device": "free some space on the machine (docker system prune)",
    "masked": "allow the service to start (sudo systemctl unmask NAME)",
    "unable to start service": "log in and run `systemctl status` and `journalctl -xe`",
    "dpkg frontend lock": "another program is installing packages; wait until it has finished",
    "toomanyrequests": "log in to the registry (--registry-login FILE), or wait until its limit resets",
    "unauthorized": "log in to the registry (--registry-login FILE)",
    "no basic auth credentials": "log in to the registry (--registry-login FILE)",
    "pull access denied": "check the image's name, or log in to the registry (--registry-login FILE)",
}
"""How to fix a failed task. Keys: texts in the task's output, in lower case."""
Report = Callable[[str], None]
"""Receives a line about progress."""


@dataclass(frozen=True)
class Setup:
    """Settings for the configuration of machines. Paths are local.

    source: origin of the container image. 'build': the image is built on the machine. 'pull': the image with the name
    ``reference`` is pulled from a registry. 'load': the file ``image_archive`` is loaded. A build installs packages
    from the archive ``wheels``, or else from the package index ``pip_index`` (a URL that may contain a password;
    ``ca_bundle`` verifies its server). registry_login: file with the logins of registries for a build or pull, as
    `docker login` writes it. base_image: used in place of the variant's base image. base_image_archive: file to load
    the base image from if no registry has it. cdi_spec: a file that describes fake GPUs, for tests. extra: more
    variables of the roles (see their defaults/main.yml).
    """

    image_variant: ImageVariant = "current"
    source: Literal["build", "pull", "load"] = "build"
    reference: str = ""
    image_archive: Path | None = None
    base_image: str = ""
    base_image_archive: Path | None = None
    pip_index: str = ""
    ca_bundle: Path | None = None
    registry_login: Path | None = None
    wheels: Path | None = None
    cdi_spec: Path | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ConfigurationResult:
    """The result of a configuration.

    facts: the content of each machine's node.json, by the machine's name. changed: the tasks that changed something;
    with ``check``, the tasks that would change something. log: the file with Ansible's complete output.
    """

    facts: dict[str, dict[str, Any]]
    changed: tuple[str, ...]
    log: Path


def configure(
    machines: Sequence[Machine], setup: Setup, report: Report, check: bool = False, logs: Path | None = None
) -> ConfigurationResult:
    """Configure machines, the first one as the Slurm controller; with ``check``, only list what would change.

    logs: folder for the log file; None for the folder ``configure`` in the program's state folder.
    Raises ConfigureFailed if a task fails, NotReached if a machine does not answer, and KeyboardInterrupt after SIGINT
    or SIGTERM.
    """
    changed, log = _run_and_log(PLAYBOOK, machines, partial(_role_variables, setup), report, check, logs)
    return ConfigurationResult({machine.server: _read_facts(machine.login) for machine in machines}, changed, log)


def configure_end_when_idle(
    machine: Machine, variables: Mapping[str, Any], report: Report, logs: Path | None = None
) -> tuple[str, ...]:
    """Set up a machine so that it ends its lease when it is idle; return the tasks that changed something.

    variables: the variables of the role, including secrets. logs: as in ``configure``, whose errors it raises.
    """
    return _run_and_log(END_WHEN_IDLE_PLAYBOOK, [machine], lambda scratch: dict(variables), report, False, logs)[0]


def _run_and_log(
    playbook: Path,
    machines: Sequence[Machine],
    variables: Callable[[Path], dict[str, Any]],
    report: Report,
    check: bool,
    logs: Path | None,
) -> tuple[tuple[str, ...], Path]:
    """Run a playbook; return the tasks that changed something, and the file with Ansible's complete output.

    variables: a function that returns the variables of the roles. The function gets a folder, to which it may write
    files that the variables name. Raises the errors of ``configure``.
    """
    log = (logs or state_folder() / "configure") / f"{datetime.now(UTC):%Y%m%dT%H%M%S}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryFolder("configure") as scratch,
        TemporaryFolder("sockets", SOCKET_PARENT) as sockets,
        log.open("w") as output,
    ):
        events = _Events(report, output.write, playbook)
        status = _call_ansible(scratch, str(sockets), machines, variables(scratch), events, check)
    if status == "canceled":
        raise KeyboardInterrupt
    if status != "successful":
        raise events.error(log)
    return tuple(events.changed), log


class _Events:
    """Handles Ansible's events: reports progress, collects changes and the first failure."""

    def __init__(self, report: Report, write: Callable[[str], object], playbook: Path) -> None:
        self._report, self._write = report, write
        self.playbook = playbook
        self._roles = _role_names(playbook)
        self.changed: list[str] = []
        self._failure: ConfigureFailed | NotReached | None = None

    def handle(self, event: dict[str, Any]) -> bool:
        """Handle an event; return False, so that ansible-runner does not store it."""
        if event.get("stdout"):
            self._write(f"{event['stdout']}\n")
        data = event.get("event_data", {})
        where = f"{data.get('role', 'facts')}: {data.get('task')} ({data.get('host')})"
        match event["event"]:
            case "runner_on_start":
                self._report(f"{self._progress(data)}{where}")
            case "runner_on_ok" if data["res"].get("changed"):
                self.changed.append(where)
            case "runner_on_ok" if data.get("task_action") == "ansible.builtin.debug":
                self._report(f"warning: {data['host']}: {data['res']['msg']}")
            case "runner_on_failed" | "runner_item_on_failed" if not data.get("ignore_errors"):
                self._failure = self._failure or ConfigureFailed(
                    f"{data['host']}: {where}: {_task_output(data['res'])}"
                )
            case "runner_on_unreachable":
                self._failure = self._failure or NotReached(f"{data['host']}: {_task_output(data['res'])}")
        return False

    def error(self, log: Path) -> ConfigureFailed | NotReached:
        """Return the error to raise, with a fix."""
        failure = self._failure or ConfigureFailed("Ansible failed")
        fixes = (fix for symptom, fix in FIXES.items() if symptom in str(failure).lower())
        fix = next(fixes, "fix the cause")
        return type(failure)(f"{failure}; {fix}, then run the command again to resume; full log: {log}")

    def _progress(self, data: dict[str, Any]) -> str:
        """Return the current role's number and the number of roles, as in '2/9 '; '' outside a role."""
        role = data.get("role")
        return f"{self._roles.index(role) + 1}/{len(self._roles)} " if role in self._roles else ""


def _call_ansible(
    scratch: Path, sockets: str, machines: Sequence[Machine], variables: dict[str, Any], events: _Events, check: bool
) -> str:
    """Run the playbook of ``events`` by ansible-runner; return the status: successful, failed or canceled.

    scratch: folder for the inventory and the variables. sockets: folder for the sockets of the SSH connections.
    """
    import ansible_runner

    inventory, extra = scratch / "inventory.json", scratch / "variables.json"
    inventory.write_text(
        json.dumps({"nodes": {"hosts": {machine.server: _inventory_entry(machine.login) for machine in machines}}})
    )
    extra.touch(mode=0o600)
    extra.write_text(json.dumps(variables))
    result = ansible_runner.run(
        private_data_dir=str(scratch),
        playbook=str(events.playbook),
        inventory=str(inventory),
        cmdline=f"--extra-vars @{extra}{' --check' if check else ''}",
        envvars={
            "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOST_KEY_CHECKING": "True",  # ansible-runner overrides ansible.cfg otherwise
            "ANSIBLE_SSH_CONTROL_PATH_DIR": sockets,
            "LC_ALL": "C.UTF-8",  # Ansible rejects the C locale and locales that are not installed
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        },
        event_handler=events.handle,
        quiet=True,
    )
    return result.status


def _inventory_entry(login: Login) -> dict[str, str]:
    """Return the inventory entry of a machine, with the login's ssh options, so that the host key is checked."""
    return {
        "ansible_host": login.host,
        "ansible_user": login.user,
        "ansible_ssh_private_key_file": str(login.key),
        "ansible_ssh_common_args": " ".join(argument for argument in login.arguments() if argument.startswith("-o")),
    }


def _role_variables(setup: Setup, scratch: Path) -> dict[str, Any]:
    """Return the roles' variables that differ from their defaults. scratch: folder for the build context."""
    context = scratch / "context.tar.gz"
    if setup.source == "build":
        write_build_context(context)
    variables = {
        "images_variant": setup.image_variant,
        "images_source": setup.source,
        "images_reference": setup.reference,
        "images_archive": setup.image_archive,
        "images_context": context if setup.source == "build" else None,
        "images_commit": checkout_commit(),
        "images_base": setup.base_image,
        "images_base_archive": setup.base_image_archive,
        "images_pip_index": setup.pip_index,
        "images_ca_bundle": setup.ca_bundle,
        "images_registry_login": setup.registry_login,
        "images_wheels": setup.wheels,
        "container_toolkit_cdi_spec": setup.cdi_spec,
    }
    return {name: _variable_text(value) for name, value in variables.items() if value} | dict(setup.extra)


def _variable_text(value: str | Path) -> str:
    """Return a variable's text. Paths become absolute: Ansible looks for relative paths in the playbook's folder."""
    return str(value.expanduser().absolute()) if isinstance(value, Path) else value


def _read_facts(login: Login) -> dict[str, Any]:
    """Return the machine's node.json, or {} if it has none yet."""
    with closing(SshShell(login)) as shell:
        result = shell.run(f"cat {FACTS_FILE}", check=False, repeatable=True)
    return json.loads(result.out) if result.code == 0 else {}


def _role_names(playbook: Path) -> list[str]:
    """Return the playbook's roles in order."""
    return [role["role"] for play in yaml.safe_load(playbook.read_text()) for role in play["roles"]]


def _task_output(result: dict[str, Any]) -> str:
    """Return a failed task's message and its command's output in one line."""
    words = " ".join(str(result.get(part) or "") for part in ("msg", "stderr" if result.get("stderr") else "stdout"))
    line = " ".join(words.split())
    return line if len(line) <= OUTPUT_LENGTH else f"{line[: OUTPUT_LENGTH // 3]} ... {line[-OUTPUT_LENGTH * 2 // 3 :]}"
