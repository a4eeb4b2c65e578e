"""`testbed logs | top | notebook`: what runs elsewhere, as it runs, and notebooks that run there."""

import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live

from experiments.cli.lease import print_json
from experiments.errors import InputError, unknown
from experiments.system.files import CODE
from provision.configure.playbook import ImageVariant
from provision.errors import LineCut, NotReached
from provision.sites.base import TESTBEDS

if TYPE_CHECKING:
    from provision.ssh.shell import Shell

NOTEBOOKS = CODE / "experiments" / "notebooks"
FOLLOW_S = 1.0
LOOK_S = 3.0
AT_A_TIME = 1 << 22

app = typer.Typer()
RunPath = Annotated[Path, typer.Argument(metavar="[RUN]", help="The run's folder.")]
Site = Annotated[str, typer.Option(help=f"Where: slurm (with --profile), {', '.join(TESTBEDS)}, or a region.")]
Profile = Annotated[str | None, typer.Option(help="Of a cluster: its name, or a YAML file; means --site slurm.")]


@app.command()
def logs(
    row: Annotated[str, typer.Argument(metavar="ROW")],
    run: RunPath = Path("results/latest"),
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the row ends.")] = False,
) -> None:
    """Print a row's log: as it came home, or from where the row runs."""
    from experiments.results.run_folder import RunFolder
    from experiments.results.schema import RESULT_FILE
    from experiments.runners.targets import monitor_target
    from provision.ssh.shell import LocalShell

    folder = RunFolder(run)
    kept = folder.read_run()
    if row not in kept.rows:
        raise unknown("row", row, kept.rows, f"run {run}")
    at_home = folder.row(row)
    if (at_home / RESULT_FILE).exists() or kept.site == "local":
        _print_log(LocalShell(), str(at_home.resolve()), follow)
        return
    there = monitor_target(kept.site, kept.profile)
    try:
        _print_log(there.shell, f"{there.folder}/{kept.run_id}/{kept.suite}/{row}", follow)
    finally:
        there.close()


@app.command()
def top(
    site: Site = "chameleon",
    profile: Profile = None,
    once: Annotated[bool, typer.Option("--once", help="Look once.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: JSON on stdout.")] = False,
) -> None:
    """Show the GPUs of all nodes, and the rows that run or wait there. Ctrl-C ends it."""
    from pydantic import TypeAdapter

    from experiments.runners.monitor import Observation, monitor_table, observe
    from experiments.runners.targets import SLURM, monitor_target

    if as_json and not once:
        raise InputError("--json: allowed with --once only")
    there = monitor_target(SLURM if profile else site, profile)
    try:
        if as_json:
            print_json(TypeAdapter(Observation).dump_python(observe(there), mode="json"))
        elif once:
            Console().print(monitor_table(observe(there)))
        else:
            _live(lambda: monitor_table(observe(there)))
    finally:
        there.close()


@app.command()
def notebook(
    site: Annotated[str, typer.Option(help=f"Where: {', '.join(TESTBEDS)}, or a region.")] = "chameleon",
    narrative: Annotated[str | None, typer.Option(metavar="SUITE", help="Open this suite's notebook.")] = None,
    image_variant: Annotated[
        ImageVariant, typer.Option("--versions", help="Of the image that it runs in.")
    ] = "current",
    into: Annotated[Path, typer.Option(help="Where notebooks come home to.")] = Path("notebooks"),
) -> None:
    """Serve notebooks from the first machine of the lease, until Ctrl-C; then bring them home."""
    from experiments.runners.notebook_server import FOLDER, served
    from experiments.runners.slurm.download import download_folder
    from experiments.runners.targets import monitor_target

    there = monitor_target(site, None)
    opened = f"{narrative}.ipynb" if narrative else None
    try:
        if opened:
            _put_notebook(there.shell, opened, f"{FOLDER}/{opened}")
        with suppress(KeyboardInterrupt), served(there.shell, opened, image_variant) as address:
            print(f"in a browser, or as a local runtime of Colab: {address}\nCtrl-C ends it", flush=True)
            signal.pause()
        print(f"{download_folder(there.shell, FOLDER, into)} files came home to {into}")
    finally:
        there.close()


def _put_notebook(shell: "Shell", name: str, remote: str) -> None:
    """Put a narrative notebook there, unless there is one that may have been worked on."""
    known = {file.name: file for file in NOTEBOOKS.glob("*.ipynb")}
    if name not in known:
        raise unknown(
            "notebook", name.removesuffix(".ipynb"), sorted(file.stem for file in known.values()), "--narrative"
        )
    if shell.run(f"test -e {shlex.quote(remote)}", check=False, repeatable=True).code:
        shell.put(known[name], remote)


def _live(sight: Callable[[], RenderableType]) -> None:
    with Live(console=Console(), auto_refresh=False, screen=Console().is_terminal) as live:
        while True:
            try:
                live.update(sight(), refresh=True)
            except NotReached as problem:
                live.update(str(problem), refresh=True)
            time.sleep(LOOK_S)


def _print_log(shell: "Shell", folder: str, follow: bool) -> None:
    """Print the log in ``folder`` from its begin; InputError where there is none and it is not waited for."""
    from experiments.results.schema import LOG_FILE, RESULT_FILE

    log, result = shlex.quote(f"{folder}/{LOG_FILE}"), shlex.quote(f"{folder}/{RESULT_FILE}")
    begin = 0
    while True:
        command = f"test -e {result} && echo ended || echo goes on; test ! -e {log} || tail -c +{begin + 1} {log}"
        more = bytearray()
        with suppress(LineCut):
            shell.stream(f"{command} | head -c {AT_A_TIME}", more.extend)
        state, _, text = bytes(more).partition(b"\n")
        sys.stdout.buffer.write(text)
        sys.stdout.flush()
        begin += len(text)
        if len(text) == AT_A_TIME:
            continue
        if not follow and not begin:
            raise InputError(f"{folder}: no {LOG_FILE} at {shell.where} yet; with -f it is waited for")
        if state == b"ended" or not follow:
            return
        time.sleep(FOLLOW_S)
