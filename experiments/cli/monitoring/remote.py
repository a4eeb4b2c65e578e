"""`testbed logs | top | notebook`: monitor rows on other machines, and run notebooks on them."""

import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli.output import console, print_json, say
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import Json
from experiments.errors import InputError, unknown_name_error
from experiments.system.files import CODE_FOLDER
from experiments.system.logs import lines_for_terminal
from provision.choices import DEMO, LEASING_SITES, ImageVariant
from provision.errors import ConnectionDropped, NotReached
from provision.words import number_with_noun

if TYPE_CHECKING:
    from rich.console import RenderableType

    from experiments.results.run_folder import Run
    from provision.ssh.shell import Shell

PROJECT_NOTEBOOKS = CODE_FOLDER / "experiments" / "notebooks"
FOLLOW_INTERVAL_S = 1.0
REFRESH_INTERVAL_S = 3.0
CHUNK_BYTES = 1 << 22

app = Commands()
SiteOrSlurm = Annotated[
    str, typer.Option(help=f"Site: slurm (with --profile), {', '.join(LEASING_SITES)}, or a region.")
]


@app.command()
def logs(
    row: Annotated[str, typer.Argument(metavar="ROW", help="Id of the row.")],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")] = Path("results/latest"),
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Follow the log until the row ends.")] = False,
) -> None:
    """Print a row's log, even if the row runs on another machine."""
    from experiments.results.run_folder import row_path
    from experiments.results.schema import RESULT_FILE
    from provision.ssh.shell import LocalShell

    stored = _run_with_row(run, row)
    path = row_path(stored.suite, row)
    if (run / path / RESULT_FILE).exists() or stored.site in ("local", DEMO):
        _print_log(LocalShell(), str((run / path).resolve()), follow)
        return
    from experiments.runners.targets import monitor_target

    with closing(monitor_target(stored.site, stored.profile)) as monitored:
        _print_log(monitored.shell, f"{monitored.folder}/{stored.run_id}/{path}", follow)


def _run_with_row(folder: Path, row: str) -> "Run":
    """Return the run in ``folder``. Raises InputError if the run cannot be read, lacks the row, or has no logs."""
    from experiments.results.run_folder import RUN_FILE, RunFolder
    from experiments.results.schema import LOG_FILE, RESULTS_FILE

    if Path(row, RUN_FILE).exists():
        raise InputError(
            f"ROW {row}: is a run's folder; allowed: the id of a row, then the folder, as in testbed logs ROW {row}"
        )
    try:
        stored = RunFolder(folder).read_run()
    except InputError as problem:
        raise InputError(f"logs of row {row}: {problem}") from None
    if row not in stored.rows:
        raise unknown_name_error("row", row, stored.rows, f"run {folder}")
    if (folder / RESULTS_FILE).exists() and not os.path.lexists(RunFolder(folder).row_folder_named(row) / LOG_FILE):
        raise InputError(f"{folder}: the run is stored in compact form, without logs")
    return stored


@app.command()
def top(
    site: SiteOrSlurm = "chameleon",
    profile: Annotated[
        str | None, typer.Option(help="Name or YAML file of a cluster's profile; implies --site slurm.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print the current state and exit.")] = False,
    as_json: Json = False,
) -> None:
    """Show the GPUs of all nodes and the rows on them, until Ctrl-C."""
    from pydantic import TypeAdapter

    from experiments.runners.monitor import Observation, monitor_table, observe
    from experiments.runners.targets import SLURM, monitor_target

    if as_json and not once:
        raise InputError("--json: allowed with --once only")
    with closing(monitor_target(SLURM if profile else site, profile)) as monitored:
        if as_json:
            print_json(TypeAdapter(Observation).dump_python(observe(monitored), mode="json"))
        elif once:
            console().print(monitor_table(observe(monitored)))
        else:
            _show_live(lambda: monitor_table(observe(monitored)))


@app.command()
def notebook(
    name: Annotated[
        str | None, typer.Argument(metavar="NOTEBOOK", help="Notebook to open: a suite's name, or 'sizing'.")
    ] = None,
    site: Annotated[
        str,
        typer.Option(
            help=f"Site: local (this machine), {', '.join((*LEASING_SITES, DEMO))}, or a region such as CHI@TACC."
        ),
    ] = "chameleon",
    image_variant: Annotated[
        ImageVariant, typer.Option("--versions", help="Library versions of the image in which Jupyter runs.")
    ] = "current",
    into: Annotated[
        Path,
        typer.Option(help="Folder to download notebooks to; with --site local, the folder to serve notebooks from."),
    ] = Path("notebooks"),
    stored_run: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Write the notebook with the outputs of this stored run, and do not start Jupyter.",
        ),
    ] = None,
) -> None:
    """Serve Jupyter from the leased machine through a tunnel.

    Jupyter runs on the first machine of the lease until Ctrl-C. Then the notebooks are downloaded. With --site local,
    Jupyter runs on this machine. It listens on the loopback interface only and requires the token in the printed
    address. With --from, nothing is served: a copy of the notebook is written with the outputs of a stored run.
    """
    if stored_run:
        _write_with_outputs(name, stored_run, into)
        return
    if site == "local":
        _serve_locally(into, name)
        return
    from experiments.runners.notebook_server import NOTEBOOK_FOLDER, NOTEBOOKS_FETCHED, serve_notebooks
    from experiments.runners.slurm.download import download_folder
    from experiments.runners.targets import monitor_target

    notebook_file = f"{name}.ipynb" if name else None
    with closing(monitor_target(site, None)) as monitored:
        if notebook_file:
            _upload_notebook(monitored.shell, notebook_file, f"{NOTEBOOK_FOLDER}/{notebook_file}")
        with suppress(KeyboardInterrupt), serve_notebooks(monitored.shell, notebook_file, image_variant) as address:
            _show_address("open in a browser, or as a local runtime of Colab", address)
            signal.pause()
        downloaded = download_folder(monitored.shell, NOTEBOOK_FOLDER, into)
        print(f"{number_with_noun(downloaded, 'file')} downloaded to {into}")
        monitored.shell.run(f": > {NOTEBOOKS_FETCHED}", check=False, repeatable=True)


def _write_with_outputs(name: str | None, run: str, folder: Path) -> None:
    from experiments.system.packages import require_packages

    require_packages("papermill", "ipykernel")
    from experiments.notebooks.refresh import refresh

    if name is None:
        raise InputError(f"--from {run}: needs NOTEBOOK, the name of the notebook to write")
    notebook_file = f"{name}.ipynb"
    refresh(_find_notebook(notebook_file), run, folder / notebook_file)
    print(folder / notebook_file)


def _serve_locally(folder: Path, name: str | None) -> None:
    from experiments.runners.local_notebook_server import serve_local_notebooks

    folder.mkdir(parents=True, exist_ok=True)
    notebook_file = f"{name}.ipynb" if name else None
    if notebook_file and not (folder / notebook_file).exists():
        shutil.copy(_find_notebook(notebook_file), folder)
    with suppress(KeyboardInterrupt), serve_local_notebooks(folder, notebook_file) as (address, jupyter):
        _show_address("open in a browser", address)
        jupyter.wait()


def _show_address(instruction: str, address: str) -> None:
    say(f"{instruction}:\n{address}\npress Ctrl-C to stop")
    sys.stdout.flush()


def _find_notebook(name: str) -> Path:
    known = {file.name: file for file in PROJECT_NOTEBOOKS.glob("*.ipynb")}
    if name not in known:
        raise unknown_name_error(
            "notebook", name.removesuffix(".ipynb"), sorted(file.stem for file in known.values()), "NOTEBOOK"
        )
    return known[name]


def _upload_notebook(shell: "Shell", name: str, remote_path: str) -> None:
    """Upload a lab's notebook, unless the machine already has the file, which the user may have edited."""
    notebook = _find_notebook(name)
    if shell.run(f"test -e {shlex.quote(remote_path)}", check=False, repeatable=True).code:
        shell.put(notebook, remote_path)


def _show_live(make_view: "Callable[[], RenderableType]") -> None:
    from rich.live import Live

    output = console()
    with Live(console=output, auto_refresh=False, screen=output.is_terminal) as live:
        while True:
            try:
                live.update(make_view(), refresh=True)
            except NotReached as problem:
                live.update(str(problem), refresh=True)
            time.sleep(REFRESH_INTERVAL_S)


def _write_log(text: bytes) -> None:
    """Write part of a log to stdout: its bytes, or on a terminal its text without control sequences."""
    if sys.stdout.isatty():
        sys.stdout.write(lines_for_terminal(text.decode(errors="replace")))
    else:
        sys.stdout.buffer.write(text)
    sys.stdout.flush()


def _print_log(shell: "Shell", folder: str, follow: bool) -> None:
    """Print the log in ``folder`` from its start; with ``follow``, until the row ends.

    Raises InputError if the log is empty, unless ``follow`` is True and the row has not ended yet.
    """
    from experiments.results.schema import LOG_FILE, RESULT_FILE

    log, result = shlex.quote(f"{folder}/{LOG_FILE}"), shlex.quote(f"{folder}/{RESULT_FILE}")
    printed_bytes = 0
    while True:
        read_log = f"test ! -f {log} || tail -c +{printed_bytes + 1} {log}"
        command = f"test -e {result} && echo ended || echo goes on; {read_log}"
        received = bytearray()
        with suppress(ConnectionDropped):
            shell.stream(f"{command} | head -c {CHUNK_BYTES}", received.extend)
        state, _, text = bytes(received).partition(b"\n")
        _write_log(text)
        printed_bytes += len(text)
        if len(text) == CHUNK_BYTES:
            continue
        if state == b"ended" and not printed_bytes:
            raise InputError(f"{folder}: no output in {LOG_FILE} at {shell.where}; the row has ended")
        if not follow and not printed_bytes:
            raise InputError(f"{folder}: no {LOG_FILE} at {shell.where} yet; -f waits for it")
        if state == b"ended" or not follow:
            return
        time.sleep(FOLLOW_INTERVAL_S)
