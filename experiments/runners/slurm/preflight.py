"""Check a Slurm cluster: account, connection, tools, folder, partitions and environment."""

import shlex
from collections.abc import Callable

from experiments.runners.slurm.cluster import TOOLS, Cluster
from experiments.runners.slurm.profile import Profile
from provision.checks import Check, run_check, skip_checks
from provision.errors import CommandFailed, PreflightCheckFailed
from provision.ssh.shell import Shell


def check_cluster(shell: Shell, profile: Profile) -> list[Check]:
    """Run all checks of the cluster of ``profile`` in ``shell`` and return them; no job is submitted."""
    cluster = Cluster(shell, profile)
    checks = [
        run_check("account", lambda: _check_account(profile)),
        run_check("connection", lambda: f"reached {shell.run('hostname', repeatable=True).out.strip()}"),
    ]
    if not checks[-1].passed:
        return checks + skip_checks(("tools", "folder", "partitions", "environment"), "connection")
    checks.append(run_check("tools", lambda: _check_tools(shell)))
    checks.append(run_check("folder", lambda: cluster.folder))
    slurm: dict[str, Callable[[], str]] = {"partitions": lambda: _check_partitions(shell, profile)}
    if checks[-1].passed:
        slurm["environment"] = lambda: _check_environment(cluster)
    checks += [run_check(name, check) for name, check in slurm.items()]
    return checks if "environment" in slurm else checks + skip_checks(("environment",), "folder")


def _check_account(profile: Profile) -> str:
    if profile.needs_account and not profile.account:
        raise PreflightCheckFailed(f"jobs at {profile.title} need --account, the project that is charged")
    return profile.account or "none is needed"


def _check_tools(shell: Shell) -> str:
    command = f"for tool in {shlex.join(TOOLS)}; do command -v $tool > /dev/null || echo $tool; done"
    if missing := shell.run(command, repeatable=True).out.split():
        raise PreflightCheckFailed(
            f"{', '.join(missing)} missing on {shell.where}; set host of the profile to a login node"
        )
    return ", ".join(TOOLS)


def _check_partitions(shell: Shell, profile: Profile) -> str:
    known = shell.run("sinfo --noheader --format %R", repeatable=True).out.split()
    wanted = [name for name in (profile.partition, profile.cpu_partition) if name]
    if unknown := [name for name in wanted if name not in known]:
        raise PreflightCheckFailed(
            f"no partition {', '.join(unknown)}; correct the profile; allowed: {', '.join(known)}"
        )
    return ", ".join(wanted) or f"the default of {', '.join(known)}"


def _check_environment(cluster: Cluster) -> str:
    """Start the Python of the profile, without the project's code."""
    try:
        out = cluster.python_output("import papermill, sys; print(sys.version.split()[0])")
    except CommandFailed as problem:
        raise PreflightCheckFailed(
            f"its Python cannot run rows: {problem}; change environment or modules of the profile"
        ) from None
    return f"{cluster.profile.runtime} {cluster.profile.environment or ''}, Python {out.strip()}".replace(" ,", ",")
