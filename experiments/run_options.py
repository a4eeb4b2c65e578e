"""The options of a run, declared once.

Each field of RunOptions states its default, its command-line option and, as a Choice, where its value is used: in
run.json, in the run's identity, in the default run id, in comparisons and JUnit. All these places use the lists in this
module. A test compares the fields of run.json and the variables of the Makefile with the lists.
"""
# ruff: noqa: RUF009 (the fields are declared by functions that return dataclasses.field)

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from experiments.suites.choices import SYNTHETIC, Input, SizeOption, Weights
from experiments.system.options import option
from provision.choices import ImageVariant

AUTO = "auto"
KEY = "choice"
IdPart = Callable[[Any], str]


@dataclass(frozen=True)
class Choice:
    """Where the value of a field is used.

    recorded: in run.json. identity: a run can be continued only with the same value. shown: in comparisons and JUnit.
    id_part: the value's part of the default run id, "" for none.
    """

    recorded: bool = True
    identity: bool = False
    shown: bool = False
    id_part: IdPart = lambda value: ""


def _choice(default: Any, help: str, *, recorded: bool = True, **more: Any) -> Any:
    """Return a field with an option and a Choice."""
    kinds = {name: more.pop(name) for name in ("identity", "shown", "id_part") if name in more}
    return option(default, help, metadata={KEY: Choice(recorded=recorded, **kinds)}, **more)


_identity = partial(_choice, identity=True, shown=True)
_not_recorded = partial(_choice, recorded=False)


def _unless(*values: Any, text: str = "{}") -> IdPart:
    """Return the part of the run id for a value that is not in ``values``."""
    return lambda value: "" if value in values else text.format(value)


@dataclass(frozen=True)
class RunOptions:
    """The user's options for a run of one suite; card and size may be 'auto'.

    The parts of the default run id are in the order of the fields. suite and command have no option: the suite is an
    argument of the command, and command is the command line itself.
    """

    suite: str = field(default="", metadata={KEY: Choice(identity=True, id_part=str)})
    rows: tuple[str, ...] = _choice((), "Only this row; may be given several times.", flag="--row", metavar="ROW")
    card: str = _identity(AUTO, "GPU model that the rows target; auto: the machine's own.", id_part=str)
    size: SizeOption = _identity(
        AUTO, "Size of the models; auto: full where a GPU has enough memory, else tiny.", id_part=str
    )
    length: Literal["verdict", "as-taught"] = _identity(
        "verdict", "Steps: as many as the evaluation needs, or all steps of the lab.", id_part=str
    )
    site: str = _identity(
        "local", "Where rows run: local, slurm, or chameleon (a leased machine).", id_part=_unless("local", "slurm")
    )
    profile: str | None = _identity(
        None,
        "With --site slurm: roihu, lumi, mahti, puhti, or the path of a YAML file.",
        id_part=lambda profile: Path(profile).stem if profile else "",
    )
    account: str | None = _not_recorded(None, "With --site slurm: the project that is charged for the jobs.")
    weights: Weights = _identity("random", "Initial weights.", id_part=_unless("random"))
    input: Input = _identity(
        "as-taught", "Input of BLIP-2: the caption only, or the image and the caption.", id_part=_unless("as-taught")
    )
    image_variant: ImageVariant = _identity(
        "current",
        "Library versions of the image on leased machines.",
        flag="--versions",
        id_part=_unless("current", text="{}-versions"),
    )
    gpus_per_node: int | None = _identity(
        None,
        "Scale rows that need more GPUs per node down to N.",
        metavar="N",
        id_part=_unless(None, text="{}gpus"),
    )
    data: str = _choice(
        SYNTHETIC,
        "synthetic, hub (published texts), a folder, or the path or URL of an archive.",
        shown=True,
        id_part=lambda data: "" if data == SYNTHETIC else "realdata",
    )
    data_sha256: str | None = _identity(None, "SHA-256 of the archive; required for a URL.")
    run_id: str | None = _choice(None, "Name of the run; default: composed of the options.")
    results: Path = _not_recorded(Path("results"), "Folder that runs are stored in.", metavar="DIR")
    host_memory_gib: float | None = _not_recorded(
        None, "Memory of this machine, where it reports less than it has.", minimum=1
    )
    rerun: bool = _not_recorded(False, "Run finished rows again.", flag="--rerun")
    keep_versions: bool = _not_recorded(
        False, "Keep finished rows that other versions, another driver or GPU made.", flag="--keep-versions"
    )
    predict: bool = _not_recorded(True, "Predict the rows at full size first.")
    predict_only: bool = _not_recorded(
        False, "Predict the rows at full size and evaluate the predictions; run no row.", flag="--predict-only"
    )
    command: str = field(default="", metadata={KEY: Choice()})


CHOICES: dict[str, Choice] = {one.name: one.metadata[KEY] for one in fields(RunOptions)}


def names_where(test: Callable[[Choice], bool]) -> tuple[str, ...]:
    """Return the names of the options whose Choice passes ``test``, in their order."""
    return tuple(name for name, choice in CHOICES.items() if test(choice))


RECORDED = names_where(lambda choice: choice.recorded)
IDENTITY = names_where(lambda choice: choice.identity)
SHOWN = names_where(lambda choice: choice.shown)


def recorded(options: RunOptions) -> dict[str, Any]:
    """Return the values to record in run.json, by name."""
    return {name: getattr(options, name) for name in RECORDED}


def default_run_id(options: RunOptions) -> str:
    """Return the run's name, derived from its options, so that the same command finds the same folder again.

    card and size must be resolved.
    """
    parts = (choice.id_part(getattr(options, name)) for name, choice in CHOICES.items())
    return "-".join(filter(None, parts))
