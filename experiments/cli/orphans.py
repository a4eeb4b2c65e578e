"""`testbed orphans`: leaked resources, which no active lease of this computer's journal covers."""

from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli.lease_options import confirm, new_reconciler
from experiments.cli.options import DryRun, Json, Site, Yes
from experiments.cli.output import print_json
from experiments.errors import InputError

if TYPE_CHECKING:
    from provision.leasing.orphans import Orphan

ELSEWHERE = "not created from this computer; deleted only if its tag is named"
HOW = "nothing was deleted; --clean deletes what was created from this computer, --clean TAG what is named"

app = typer.Typer()


@app.command(name="orphans")
def orphans_command(
    tags: Annotated[
        list[str] | None,
        typer.Argument(metavar="TAG", help="With --clean: delete these; default: those created from this computer."),
    ] = None,
    site: Site = "chameleon",
    clean: Annotated[bool, typer.Option("--clean", help="Delete leaked resources.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """List your tagged resources that no active lease covers."""
    from provision.leasing import release
    from provision.leasing.orphans import chosen, orphans
    from provision.sites.base import connect_to

    if tags and not clean:
        raise InputError(f"TAG {tags[0]!r}: allowed with --clean only")
    connected, reconciler = connect_to(site), new_reconciler()
    found = orphans(connected, reconciler)
    selected = chosen(found, tags or []) if clean else []
    if selected and not dry_run:
        confirm(yes, f"delete {', '.join(resource for orphan in selected for resource in orphan.there)}")
        for orphan in selected:
            release.clear(connected, reconciler, orphan.active_lease)
    names = [orphan.active_lease.tag for orphan in selected]
    if as_json:
        data = {one.active_lease.tag: {"there": one.there, "opened_here": one.opened_here} for one in found}
        print_json({"orphans": data, "would delete" if dry_run else "deleted": names})
    else:
        print("\n".join([*map(_line, found), _outcome(names, dry_run)]) if found else "no leaked resources")


def _line(orphan: "Orphan") -> str:
    return f"{orphan.active_lease.tag}: {', '.join(orphan.there)}" + ("" if orphan.opened_here else f" ({ELSEWHERE})")


def _outcome(tags: list[str], dry_run: bool) -> str:
    if not tags:
        return HOW
    return f"{'would be deleted' if dry_run else 'deleted'}: {', '.join(tags)}"
