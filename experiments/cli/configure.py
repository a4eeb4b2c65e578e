"""`testbed configure`: install driver, Docker, the GPU toolkit, Slurm and the image on leased machines."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from experiments.cli.lease_options import active_lease_named, new_reconciler, reject_missing_file
from experiments.cli.output import print_json, say
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import ActiveName, Json, RegistryLogin
from experiments.errors import InputError
from experiments.system.packages import require_packages
from provision.choices import ImageVariant
from provision.errors import NotReached
from provision.words import number_with_noun

if TYPE_CHECKING:
    from provision.configure.playbook import ConfigurationResult

app = Commands()
ImageSource = Literal["build", "pull", "load"]


@app.command(name="configure")
def configure_command(
    name: ActiveName = None,
    image_variant: Annotated[
        ImageVariant, typer.Option("--versions", help="Library versions: current, or those of the labs.")
    ] = "current",
    image_source: Annotated[
        ImageSource, typer.Option(help="build the image on the machine, pull --reference, or load --image-archive.")
    ] = "build",
    reference: Annotated[str, typer.Option(help="With pull: name of the image in its registry.")] = "",
    image_archive: Annotated[Path | None, typer.Option(help="With load: archive made by docker save.")] = None,
    base_image: Annotated[
        str, typer.Option(help="With build: base image; default: PyTorch's image for --versions.")
    ] = "",
    base_image_archive: Annotated[
        Path | None, typer.Option(help="With build: archive of the base image, made by docker save.")
    ] = None,
    pip_index: Annotated[
        str,
        typer.Option(help="With build: package index; default: PyPI.", envvar="TESTBED_PIP_INDEX", show_envvar=True),
    ] = "",
    ca_bundle: Annotated[Path | None, typer.Option(help="With build: file of the index's CA certificates.")] = None,
    registry_login: RegistryLogin = None,
    check: Annotated[bool, typer.Option("--check", help="Print what would change; change nothing.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print each task.")] = False,
    as_json: Json = False,
) -> None:
    """Install driver, Docker, Slurm and image on the nodes of a lease.

    Resumes after an interruption; changes only what is not up to date.
    """
    from provision.configure.playbook import Setup, configure

    require_packages("ansible_runner")
    _check_image_option("--reference", "pull", image_source, bool(reference))
    _check_image_option("--image-archive", "load", image_source, image_archive is not None)
    reject_missing_file("--image-archive", image_archive)
    reject_missing_file("--base-image-archive", base_image_archive)
    reject_missing_file("--ca-bundle", ca_bundle)
    reject_missing_file("--registry-login", registry_login)
    reconciler = new_reconciler()
    active_lease = active_lease_named(reconciler, name)
    if not active_lease.machines:
        raise NotReached(f"{active_lease.name}: no machine has answered yet; `testbed lease` waits for the machines")
    options = (reference, image_archive, base_image, base_image_archive, pip_index, ca_bundle, registry_login)
    setup = Setup(image_variant, image_source, *options)
    result = configure(
        active_lease.machines, setup, _task_printer(verbose), check, reconciler.journal.folder / "configure"
    )
    if as_json:
        print_json(result)
    else:
        _show_result(result, check)


def _check_image_option(option: str, required_source: ImageSource, source: ImageSource, is_set: bool) -> None:
    if (source == required_source) != is_set:
        raise InputError(
            f"{option}: allowed and required only with --image-source {required_source}; the image source is {source}"
        )


def _task_printer(verbose: bool) -> Callable[[str], None]:
    """Return a function that prints warnings and tasks, each once. If ``verbose`` is False: roles in place of tasks."""
    printed: set[str] = set()

    def show(line: str) -> None:
        text = line if verbose or line.startswith("warning:") else line.partition(":")[0]
        if text not in printed:
            printed.add(text)
            say(text, stderr=True)

    return show


def _show_result(result: "ConfigurationResult", check: bool) -> None:
    changed = f"{number_with_noun(len(result.changed), 'task')} {'would change' if check else 'changed'} something"
    say("\n".join([*(result.changed if check else ()), changed]))
    for server, facts in result.facts.items():
        counts = Counter(gpu["name"] for gpu in facts.get("gpus", []))
        gpus = ", ".join(f"{count} x {name}" for name, count in counts.items()) or "no GPU"
        images = ", ".join(f"{name} {digest[:19]}" for name, digest in facts.get("images", {}).items()) or "no image"
        say(f"{server}: {gpus}; {images}")
    say(f"log: {result.log}")
