"""`testbed reproduce`: everything in one go."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from experiments.cli.lease import (
    NOW,
    Count,
    DryRun,
    Gpu,
    GpuMemory,
    Gpus,
    Hours,
    Name,
    NodeName,
    NodeType,
    Site,
    Start,
    Yes,
    check_name,
    confirm,
    lease_request_for,
    new_reconciler,
    requirements_from,
    show_plan,
)
from experiments.system.processes import stop_as_interrupt
from provision.availability.times import parse_length
from provision.configure.playbook import ImageVariant, Setup
from provision.sites.base import connect_to
from provision.ssh.login import key_pair

app = typer.Typer()
LABS = {
    "single": ("single_gpu_blip2", "single_gpu_litgpt"),
    "multi": ("multi_gpu_litgpt", "slurm_hf_trainer"),
    "both": ("single_gpu_blip2", "single_gpu_litgpt", "multi_gpu_litgpt", "slurm_hf_trainer"),
}


@app.command(name="reproduce")
def reproduce_command(
    context: typer.Context,
    suites: Annotated[list[str] | None, typer.Argument(metavar="[SUITE...]", help="Else those of --for.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only this row; may be given several times.")] = None,
    site: Site = "chameleon",
    for_: Annotated[Literal["both", "single", "multi"], typer.Option("--for", help="The labs.")] = "both",
    node_type: NodeType = None,
    node: NodeName = None,
    gpu: Gpu = "",
    gpu_memory: GpuMemory = 0,
    gpus: Gpus = None,
    count: Count = 1,
    hours: Hours = None,
    start: Start = None,
    name: Name = None,
    key: Annotated[Path, typer.Option(help="Your private SSH key.")] = Path("~/.ssh/id_ed25519"),
    max_hours: Annotated[str | None, typer.Option(help="The budget: no longer lease than this.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look until a block appears, and take it.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Do not release in the end.")] = False,
    card: Annotated[str, typer.Option(help="The GPU that the rows are about; auto: the machine's own.")] = "auto",
    size: Annotated[Literal["auto", "full", "tiny"], typer.Option(help="As of testbed run.")] = "auto",
    length: Annotated[Literal["verdict", "as-taught"], typer.Option(help="As of testbed run.")] = "verdict",
    results: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are kept.")] = Path("results"),
    predict: Annotated[bool, typer.Option(help="Predict the rows first.")] = True,
    rerun: Annotated[bool, typer.Option("--rerun", help="Run finished rows again too.")] = False,
    image_variant: Annotated[ImageVariant, typer.Option("--versions", help="The image's versions.")] = "current",
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Reserve, set up, run, judge, report and release, in one go; the same command goes on where it was."""
    from experiments.cli.tables import show_runs
    from experiments.pipeline import RunOptions, options_per_suite
    from experiments.reproduce import Reproduction, plan, reproduce
    from experiments.runners.progress import view_on

    names = suites or LABS[for_]
    requirements = requirements_from(for_, node_type, node, gpu, gpu_memory, gpus, "", count, hours, start, None, None)
    pair = key_pair(key.expanduser())
    check_name(name)
    connected = connect_to(site)
    lease_request = lease_request_for(connected, name, for_, requirements, pair, start == NOW)
    options = RunOptions(
        suite=names[0],
        rows=tuple(row or ()),
        site=site,
        card=card,
        size=size,
        length=length,
        image_variant=image_variant,
        results=results,
        rerun=rerun,
        predict=predict,
        command=context.obj,
    )
    wanted = Reproduction(
        suites=tuple(options_per_suite(names, options)),
        lease_request=lease_request,
        site=connected,
        setup=Setup(image_variant),
        most=parse_length(max_hours) if max_hours else None,
        keep=keep,
        watch=watch,
    )
    if dry_run:
        show_plan(plan(wanted, new_reconciler()), as_json=False)
        return
    console = Console()
    stop_as_interrupt()
    runs = reproduce(wanted, new_reconciler(), view_on(console), lambda slot: confirm(yes, f"lease {slot}"))
    finished = show_runs(runs, console)
    raise typer.Exit(max(done.judgement.exit_code for done in finished))
