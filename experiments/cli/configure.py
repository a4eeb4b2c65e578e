"""`testbed configure`: driver, Docker, the GPU toolkit, Slurm and the image on the machines of a lease."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from experiments.cli.lease import Held, Json, active_lease_named, new_reconciler, print_json
from experiments.errors import InputError
from provision.configure.playbook import ConfiguredNode, ImageVariant, Setup, configure
from provision.errors import NotReached

app = typer.Typer()
Source = Literal["build", "pull", "load"]


@app.command(name="configure")
def configure_command(
    name: Held = None,
    image_variant: Annotated[
        ImageVariant, typer.Option("--versions", help="Which versions: of today, or the material's own.")
    ] = "current",
    image_source: Annotated[
        Source, typer.Option(help="build the image there, pull --reference, or load --archive.")
    ] = "build",
    reference: Annotated[str, typer.Option(help="With pull: the image in its registry.")] = "",
    archive: Annotated[Path | None, typer.Option(help="With load: a file of docker save.")] = None,
    base_image: Annotated[str, typer.Option(help="With build: instead of PyTorch's image of that variant.")] = "",
    base_archive: Annotated[Path | None, typer.Option(help="With build: a file of docker save that has it.")] = None,
    pip_index: Annotated[
        str, typer.Option(help="With build: instead of PyPI.", envvar="TESTBED_PIP_INDEX", show_envvar=True)
    ] = "",
    ca_bundle: Annotated[Path | None, typer.Option(help="With build: certificates to trust the index by.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say what would change.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say each task.")] = False,
    as_json: Json = False,
) -> None:
    """Set the machines of a lease up. The same command goes on where it was, and changes nothing that is right."""
    _needs("--reference", "pull", image_source, bool(reference))
    _needs("--archive", "load", image_source, archive is not None)
    for option, file in (("--archive", archive), ("--base-archive", base_archive), ("--ca-bundle", ca_bundle)):
        if file and not file.is_file():
            raise InputError(f"{option} {file}: no such file")
    reconciler = new_reconciler()
    active_lease = active_lease_named(reconciler, name)
    if not active_lease.machines:
        raise NotReached(f"{active_lease.name}: no machine has answered yet; testbed lease goes on until they do")
    setup = Setup(image_variant, image_source, reference, archive, base_image, base_archive, pip_index, ca_bundle)
    done = configure(active_lease.machines, setup, _say(verbose), check, reconciler.journal.folder / "configure")
    if as_json:
        print_json(done)
    else:
        _show(done, check)


def _needs(option: str, source: Source, chosen: Source, given: bool) -> None:
    if (source == chosen) != given:
        raise InputError(f"{option}: needed with --image-source {source}, and with no other; it is {chosen}")


def _say(verbose: bool) -> Callable[[str], None]:
    """Each task; or each role, as it comes up."""
    said: set[str] = set()

    def say(line: str) -> None:
        shown = line if verbose else line.partition(":")[0]
        if shown not in said:
            said.add(shown)
            print(shown, file=sys.stderr, flush=True)

    return say


def _show(done: ConfiguredNode, check: bool) -> None:
    changed = f"{len(done.changed)} tasks {'would change' if check else 'changed'} something"
    print("\n".join([*(done.changed if check else ()), changed]))
    for server, facts in done.facts.items():
        gpus = ", ".join(gpu["name"] for gpu in facts.get("gpus", [])) or "no GPU"
        images = ", ".join(f"{name} {digest[:19]}" for name, digest in facts.get("images", {}).items()) or "no image"
        print(f"{server}: {gpus}; {images}")
    print(f"all of it: {done.log}")
