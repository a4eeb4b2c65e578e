"""Options that several commands use, and conversion of a dataclass's fields to command-line options."""

import inspect
import os
from collections.abc import Callable
from dataclasses import Field, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from experiments.suites.choices import GroupOption
from experiments.system.options import Option, fields_with_options
from provision.choices import DEMO, LEASING_SITES

HISTORY_DATABASE = Path("results/history.db")
"""The database of the history if the option --database is not given."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; everything else goes to stderr.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation; required without a terminal.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the planned operations; change nothing.")]
Key = Annotated[Path, typer.Option(help="Your private SSH key.")]
DEFAULT_KEY = Path("~/.ssh/id_ed25519")
Site = Annotated[str, typer.Option(help=f"Site: {', '.join((*LEASING_SITES, DEMO))}, or a region such as CHI@TACC.")]
SiteOrAny = Annotated[
    str, typer.Option(help=f"Site: {', '.join((*LEASING_SITES, DEMO))}, a region, or any: all sites with an account.")
]
Name = Annotated[
    str | None,
    typer.Option(help="Name of the lease; default: llm_USER, or by --for llm_single_USER or llm_multi_USER."),
]
ActiveName = Annotated[
    str | None, typer.Argument(metavar="NAME", help="Name of the lease; default: the only active lease.")
]
ActiveNameOrAll = Annotated[
    str | None, typer.Argument(metavar="NAME", help="Name of the lease; default: all active leases.")
]
Image = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Disk image of the nodes; default: Chameleon's image with the nodes' GPU driver."
    ),
]
RegistryLogin = Annotated[
    Path | None, typer.Option(help="File with logins for container registries, such as ~/.docker/config.json.")
]
Watch = Annotated[bool, typer.Option("--watch", help="Wait until a time slot is free, then lease it.")]

Notify = Annotated[
    list[str] | None,
    typer.Option(
        "--notify",
        metavar="URL",
        help="Send messages to this Apprise URL, such as mailto://USER:PASSWORD@HOST, and to those in TESTBED_NOTIFY.",
    ),
]


def _use_suites(path: Path | None) -> Path | None:
    """Make the suites at ``path`` available by name in this process and in the processes that it starts."""
    if path is not None:
        from experiments.suites.suite import SUITES_VARIABLE, user_suites

        os.environ[SUITES_VARIABLE] = str(path.expanduser().absolute())
        user_suites()
    return path


def _suite_file_option(description: str) -> Any:
    return typer.Option("--suite-file", metavar="PATH", callback=_use_suites, is_eager=True, help=description)


SUITE_FILE_HELP = "File of your own suite, or a folder of such files"
SuiteFile = Annotated[Path | None, _suite_file_option(f"{SUITE_FILE_HELP}; default for SUITE: all suites in PATH.")]
SuiteFileOfRun = Annotated[Path | None, _suite_file_option(f"{SUITE_FILE_HELP}.")]
Group = Annotated[
    GroupOption | None, typer.Option(help="Instead of SUITE: all labs for one GPU, for several GPUs, or for both.")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="results/RUN_ID, or a folder of several runs.")]
RunPaths = Annotated[
    list[Path], typer.Argument(metavar="RUN_FOLDER", help="results/RUN_ID, or a folder of several runs.")
]


class OmitFields:
    """Annotation with the names of dataclass fields that get no option, because the command itself sets them."""

    def __init__(self, *names: str) -> None:
        self.names = names


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each dataclass parameter of a command by one option per field, and pass an instance to the command.

    experiments.system.options.option declares the options. Annotated[RunOptions, OmitFields("site")] leaves the field
    ``site`` at its default.
    """
    signature = inspect.signature(command)
    groups: dict[str, tuple[type, list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        cls, omitted = _dataclass_of(parameter.annotation)
        if cls is None:
            parameters.append(parameter)
            continue
        group_parameters = [
            _parameter(field, option) for field, option in fields_with_options(cls) if field.name not in omitted
        ]
        groups[parameter.name] = (cls, [one.name for one in group_parameters])
        parameters += group_parameters

    @wraps(command)
    def command_with_options(**values: Any) -> None:
        objects = {
            name: cls(**{field: _tuple_if_list(values.pop(field)) for field in names})
            for name, (cls, names) in groups.items()
        }
        command(**values, **objects)

    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    command_with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command_with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    return command_with_options


def _dataclass_of(annotation: Any) -> tuple[type | None, tuple[str, ...]]:
    """Return the dataclass of an annotation, or None, and the names of its fields that get no option."""
    cls, *metadata = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if not (isinstance(cls, type) and is_dataclass(cls)):
        return None, ()
    return cls, tuple(name for one in metadata if isinstance(one, OmitFields) for name in one.names)


def _parameter(field: Field[Any], option: Option) -> inspect.Parameter:
    flags = [option.flag] if option.flag else []
    declared = typer.Option(*flags, help=option.help, metavar=option.metavar, min=option.minimum)
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    annotation: Any = Annotated[_typer_type(field), declared]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _typer_type(field: Field[Any]) -> Any:
    """Return the field's type for Typer, which needs list[X] in place of tuple[X, ...]."""
    if get_origin(field.type) is not tuple:
        return field.type
    item: Any = get_args(field.type)[0]
    return list[item]


def _tuple_if_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
