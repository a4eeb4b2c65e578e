"""Run the preflight checks of this machine, of a Slurm cluster, or of a site that leases machines."""

from pathlib import Path

from experiments.errors import InputError
from experiments.run_options import RunOptions
from experiments.runners.local.preflight import check_this_machine
from experiments.runners.slurm.preflight import check_cluster
from experiments.runners.slurm.profile import profile_named
from experiments.runners.targets import SLURM, shell_of
from provision.checks import Check
from provision.choices import DISK_IMAGE
from provision.leasing.doctor import check_site
from provision.leasing.reconciler import Reconciler


def preflight(
    options: RunOptions, site: str | None, key: Path, reconciler: Reconciler, image: str | None = None
) -> list[Check]:
    """Run all checks of ``site``, or of this machine if ``site`` is None, and return them.

    The checks of this machine use the results folder in ``options``; the checks of the site slurm use the profile and
    the account. image: disk image of the nodes that a site leases; None for the default. Raises InputError for a
    profile that is missing or cannot be read.
    """
    if image and site in (None, SLURM):
        raise InputError("--image: allowed only with a --site that boots nodes")
    if site == SLURM:
        return _check_cluster(options.profile, options.account)
    if options.profile or options.account:
        raise InputError(f"{'--profile' if options.profile else '--account'}: allowed with --site {SLURM} only")
    return (
        check_this_machine(options.results) if site is None else check_site(site, key, reconciler, image or DISK_IMAGE)
    )


def _check_cluster(name: str | None, account: str | None) -> list[Check]:
    if name is None:
        raise InputError(f"--site {SLURM}: needs --profile; allowed: the name of a known cluster, or a YAML file")
    profile = profile_named(name)
    if account:
        profile = profile.model_copy(update={"account": account})
    shell = shell_of(profile)
    try:
        return check_cluster(shell, profile)
    finally:
        shell.close()
