"""`testbed orphans`: what is left at a site of leases that are on no page of the ledger here."""

from typing import Annotated

import typer

from experiments.cli.lease import DryRun, Json, Site, Yes, confirm, new_reconciler, print_json
from experiments.errors import InputError
from provision.leasing import release
from provision.leasing.leaked import LeakedResources, leaked_resources, selected
from provision.sites.base import connect_to

ELSEWHERE = "of another ledger of yours, as another computer's; deleted only by its name"
HOW = "nothing was deleted; --clean deletes what this ledger opened, --clean MARK what is named"

app = typer.Typer()


@app.command(name="orphans")
def orphans_command(
    tags: Annotated[
        list[str] | None, typer.Argument(metavar="MARK", help="With --clean: these. Else what this ledger opened.")
    ] = None,
    site: Site = "chameleon",
    clean: Annotated[bool, typer.Option("--clean", help="Delete them.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Find what carries our mark and is yours, but is in no ledger here."""
    if tags and not clean:
        raise InputError(f"MARK {tags[0]!r}: allowed with --clean only")
    connected, reconciler = connect_to(site), new_reconciler()
    found = leaked_resources(connected, reconciler)
    doomed = selected(found, tags or []) if clean else []
    if doomed and not dry_run:
        confirm(yes, f"delete {', '.join(thing for orphan in doomed for thing in orphan.resources)}")
        for orphan in doomed:
            release.delete_resources(connected, reconciler, orphan.active_lease)
    names = [orphan.active_lease.tag for orphan in doomed]
    if as_json:
        told = {one.active_lease.tag: {"there": one.resources, "opened_here": one.opened_here} for one in found}
        print_json({"orphans": told, "would delete" if dry_run else "deleted": names})
    else:
        print("\n".join([*map(_line, found), _outcome(names, dry_run)]) if found else "no orphans")


def _line(orphan: LeakedResources) -> str:
    return f"{orphan.active_lease.tag}: {', '.join(orphan.resources)}" + (
        "" if orphan.opened_here else f" ({ELSEWHERE})"
    )


def _outcome(tags: list[str], dry_run: bool) -> str:
    if not tags:
        return HOW
    return f"{'would be deleted' if dry_run else 'deleted'}: {', '.join(tags)}"
