"""`testbed`: predict, run, evaluate and report fine-tuning experiments; lease and configure machines for them.

A suite describes a lab: its rows (the experiments) and its statements about their results. A card is a GPU model.

Exit codes: 0 all evaluated statements pass, 1 a statement fails, 2 user error (one line on stderr), 3 any other error,
130 interrupted.
"""

import errno
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

from experiments.cli.output import discard_output, open_standard_streams, say
from experiments.cli.parsing.group import Group
from experiments.errors import InputError, Interrupted
from experiments.system.packages import missing_package_error
from experiments.system.secrets import hide_in_command, hide_secrets
from provision.errors import ProvisionError, SiteError
from provision.files import printable

EXIT_INTERRUPTED = 130
EXIT_OTHER_ERROR = 3
EXIT_BAD_INPUT = 2
EXIT_ABORTED = 1
EXIT_CLOSED_OUTPUT = 141
"""Exit code of a program that SIGPIPE ended."""
BAD_PATH_ERRORS = (errno.ENAMETOOLONG, errno.ELOOP)
"""Values of errno for paths that no machine can open: too long, or a loop of symbolic links."""
MACHINE_ERRORS = (
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EINVAL,
    errno.EIO,
    errno.EISDIR,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
"""Values of errno for failures that the machine or the content of a folder causes, such as a full disk; not bugs."""

app = typer.Typer(
    name="testbed",
    cls=Group,
    help=f"Run, measure and evaluate fine-tuning experiments.\n\n{(__doc__ or '').partition(chr(10) * 2)[2]}",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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
        str | None,
        typer.Option(help="Account to use: an entry of clouds.yaml; default: the entry in OS_CLOUD, or the only one."),
    ] = None,
) -> None:
    if cloud is not None:
        os.environ["OS_CLOUD"] = cloud


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    open_standard_streams()
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for plugins reads every installed package
    try:
        command_line = shlex.join(["testbed", *hide_in_command(arguments)])
        code = app(args=list(arguments) or ["--help"], obj=command_line, prog_name="testbed", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # click turns this error into exit code 1
            return _report_file_failure(end.__context__, arguments)
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except typer.Abort:
        return _report_failure("aborted; nothing was changed", EXIT_ABORTED)
    except SiteError as problem:
        return _report_failure(problem, EXIT_OTHER_ERROR)
    except (InputError, ProvisionError) as problem:
        return _report_failure(problem, EXIT_BAD_INPUT)
    except ModuleNotFoundError as problem:
        if package := missing_package_error(problem.name):
            return _report_failure(package, EXIT_BAD_INPUT)
        traceback.print_exc()
        return EXIT_OTHER_ERROR
    except OSError as problem:
        return _report_file_failure(problem, arguments)
    except (Interrupted, KeyboardInterrupt):
        return _report_failure(
            "interrupted; finished rows are stored; run the same command again to resume", EXIT_INTERRUPTED
        )
    except MemoryError:
        return _report_failure("this machine's memory, or this process's memory limit, is exhausted", EXIT_OTHER_ERROR)
    except Exception:
        traceback.print_exc()
        return EXIT_OTHER_ERROR
    return code or 0


def _report_file_failure(problem: OSError, arguments: Sequence[str]) -> int:
    """Print the error of an operation on a file; return the exit code.

    Prints one line if the user chose the file or if the machine is the cause. Every other error is a bug, and its
    traceback is printed.
    """
    file = problem.filename
    if isinstance(problem, BrokenPipeError):
        discard_output()
        return EXIT_CLOSED_OUTPUT
    if problem.errno in BAD_PATH_ERRORS or _user_chose_file(file, arguments):
        return _report_failure(f"{file}: cannot be used ({problem.strerror})", EXIT_BAD_INPUT)
    if problem.errno in MACHINE_ERRORS:
        if file is None:
            discard_output()  # perhaps the output cannot be written
        return _report_failure(f"{file or 'the output or a file'}: {problem.strerror}", EXIT_OTHER_ERROR)
    traceback.print_exc()
    return EXIT_OTHER_ERROR


def _user_chose_file(file: object, arguments: Sequence[str]) -> bool:
    """Return whether the user chose the file.

    The user chose every relative path, because the user chose the current folder. The user chose an absolute path if
    the command line contains the path or a folder above the path.
    """
    if not isinstance(file, str):
        return False
    paths = [os.path.abspath(word.rpartition("=")[2]) for word in arguments]
    return not os.path.isabs(file) or any(os.path.commonpath((path, file)) == path for path in paths)


def _report_failure(problem: object, code: int) -> int:
    with suppress(OSError):
        say(f"testbed: {' '.join(printable(hide_secrets(str(problem))).splitlines())}", stderr=True)
    return code
