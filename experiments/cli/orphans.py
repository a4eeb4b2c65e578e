"""`testbed orphans`: list and delete leaked resources, which no active lease in this computer's journal covers."""

from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli.lease_options import confirm, new_reconciler
from experiments.cli.output import print_json, say
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import DryRun, Json, Site, Yes
from experiments.errors import InputError

if TYPE_CHECKING:
    from provision.leasing.leaked import LeakedResources

ELSEWHERE_NOTE = "not created from this computer; deleted only with --clean and this tag"
CLEAN_HELP = (
    "nothing was deleted; --clean deletes the resources that were created from this computer, --clean TAG deletes the "
    "resources with this tag"
)

app = Commands()


@app.command(name="orphans")
def orphans_command(
    tags: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TAG",
            help="With --clean: tags of the resources to delete; default: all that were created from this computer.",
        ),
    ] = None,
    site: Site = "chameleon",
    clean: Annotated[bool, typer.Option("--clean", help="Delete leaked resources.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """List resources that testbed created and no active lease uses.

    testbed gives each resource that it creates the tag of its lease. A resource whose tag belongs to no active lease
    has leaked.
    """
    from provision.leasing.leaked import delete_leaked, leaked_resources, select_by_tag
    from provision.sites.base import connect_to

    if tags and not clean:
        raise InputError(f"TAG {tags[0]!r}: allowed with --clean only")
    connected, reconciler = connect_to(site), new_reconciler(site)
    leaked = leaked_resources(connected, reconciler)
    chosen = select_by_tag(leaked, tags or []) if clean else []
    if chosen and not dry_run:
        confirm(yes, f"delete {', '.join(resource for orphan in chosen for resource in orphan.resources)}")
        delete_leaked(connected, reconciler, chosen)
    names = [orphan.active_lease.tag for orphan in chosen]
    if as_json:
        data = {one.active_lease.tag: {"resources": one.resources, "in_journal": one.in_journal} for one in leaked}
        print_json({"orphans": data, "would delete" if dry_run else "deleted": names})
    else:
        say("\n".join([*map(_orphan_line, leaked), _summary(names, dry_run)]) if leaked else "no leaked resources")


def _orphan_line(leaked: "LeakedResources") -> str:
    origin = "" if leaked.in_journal else f" ({ELSEWHERE_NOTE})"
    return f"{leaked.active_lease.tag}: {', '.join(leaked.resources)}{origin}"


def _summary(tags: list[str], dry_run: bool) -> str:
    if not tags:
        return CLEAN_HELP
    return f"{'would be deleted' if dry_run else 'deleted'}: {', '.join(tags)}"
