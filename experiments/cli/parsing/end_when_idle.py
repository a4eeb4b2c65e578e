"""Options of a lease that ends itself when its node is idle."""
# ruff: noqa: RUF009 (option() returns dataclasses.field)

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.parsing.values import parse_time_option
from experiments.errors import InputError
from experiments.system.options import option

if TYPE_CHECKING:
    from provision.leasing.request import EndWhenIdle

TARGET_PATTERN = re.compile(r"\w[\w.-]*@[\w.-]+:[\w./~-]+")
"""An rsync target USER@HOST:PATH, without characters that are special in a shell."""
MIN_IDLE_TIME = timedelta(minutes=5)


@dataclass(frozen=True)
class EndWhenIdleOptions:
    """Options for a lease that ends itself: the idle time, and where the node copies its results."""

    end_when_idle: str | None = option(
        None,
        "The node ends its lease once it has had no job, GPU process or login for this time, such as 30m.",
        metavar="TIME",
    )
    results_to: str | None = option(
        None,
        "With --end-when-idle: where the node copies its results before it ends the lease.",
        metavar="USER@HOST:PATH",
    )
    results_key: Path | None = option(
        None, "With --results-to: private SSH key for HOST, without a passphrase; the key is copied to the node."
    )

    def arguments(self) -> list[str]:
        """Return the options as arguments of another `testbed` command. Raises the errors of ``parse``."""
        end_when_idle = self.parse(1)
        if end_when_idle is None:
            return []
        target = (
            ["--results-to", end_when_idle.results_to, "--results-key", str(end_when_idle.key)]
            if end_when_idle.key
            else []
        )
        return ["--end-when-idle", str(self.end_when_idle), *target]

    def parse(self, node_count: int, wait: bool = True) -> "EndWhenIdle | None":
        """Return the parsed options for a lease of ``node_count`` nodes; None if the lease does not end itself.

        wait: whether the command waits for the lease's start and boots the nodes. Raises InputError for contradictory
        options, and BadTime for an idle time that cannot be read.
        """
        from experiments.system.packages import require_packages
        from provision.availability.times import parse_length
        from provision.leasing.request import EndWhenIdle

        after, target, key = self.end_when_idle, self.results_to, self.results_key
        if bool(target) != bool(key):
            given, missing = (f"--results-to {target}", "key") if target else (f"--results-key {key}", "to")
            raise InputError(f"{given}: needs --results-{missing}; give both or neither")
        if after is None:
            if target:
                raise InputError(f"--results-to {target}: allowed with --end-when-idle only")
            return None
        if not wait:
            raise InputError(
                f"--end-when-idle {after}: not allowed with --no-wait; give it to the later command that boots the node"
            )
        if node_count != 1:
            raise InputError(f"--end-when-idle {after}: allowed with one node; --count is {node_count}")
        if target and not TARGET_PATTERN.fullmatch(target):
            raise InputError(f"--results-to {target}: allowed: USER@HOST:PATH")
        if key and not key.expanduser().is_file():
            raise InputError(f"--results-key {key}: no such file")
        if (length := parse_time_option("--end-when-idle", parse_length, after)) < MIN_IDLE_TIME:
            raise InputError(f"--end-when-idle {after}: allowed: 5m or longer")
        require_packages("ansible_runner")
        return EndWhenIdle(length, target or "", key.expanduser().absolute() if key else None)
