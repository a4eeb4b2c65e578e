"""`testbed`: predict, run, evaluate and report fine-tuning experiments; lease and configure machines for them.

Exit codes: 0 all evaluated statements pass, 1 a statement fails, 2 user error (one line on stderr), 3 something else
went wrong, 130 interrupted.
"""

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from experiments.cli import check, configure, lease, orphans, predict, remote, reproduce, results, run
from experiments.errors import InputError, Interrupted
from experiments.system.packages import missing
from provision.errors import ProvisionError, SiteError

INTERRUPTED = 130
BROKE = 3
BAD_INPUT = 2

app = typer.Typer(
    name="testbed",
    help=f"Run, measure and evaluate fine-tuning experiments.\n\n{(__doc__ or '').partition(chr(10) * 2)[2]}",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group in (run, predict, results, check, lease, configure, reproduce, orphans, remote):
    app.add_typer(group.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from experiments.system.version import version

        print(f"testbed {version()}")
        raise typer.Exit


@app.callback()
def _testbed(
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
    cloud: Annotated[
        str | None, typer.Option(help="Entry of clouds.yaml whose account is used; default: OS_CLOUD, or the only one.")
    ] = None,
) -> None:
    if cloud is not None:
        os.environ["OS_CLOUD"] = cloud


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for plugins reads every installed package
    try:
        app(args=list(arguments), obj=shlex.join(["testbed", *arguments]), prog_name="testbed")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except SiteError as problem:
        return _fail(problem, BROKE)
    except (InputError, ProvisionError) as problem:
        return _fail(problem, BAD_INPUT)
    except ModuleNotFoundError as problem:
        if package := missing(problem.name):
            return _fail(package, BAD_INPUT)
        traceback.print_exc()
        return BROKE
    except (Interrupted, KeyboardInterrupt):
        return _fail("interrupted; finished rows are stored; run the same command again to resume", INTERRUPTED)
    except Exception:
        traceback.print_exc()
        return BROKE
    return 0


def _fail(problem: object, code: int) -> int:
    print(f"testbed: {problem}", file=sys.stderr)
    return code
