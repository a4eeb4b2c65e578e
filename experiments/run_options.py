"""The options of a run, declared once.

Each field of RunOptions states its default and its command-line option. The OptionUse of an option states where its
value is used: in run.json, in the run's identity, in the default run id, in comparisons and JUnit. This module lists
the options of each use, and other modules read these lists. A test compares run.json and the Makefile with the lists.
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
USE_KEY = "use"
"""Key of an option's OptionUse in the metadata of its field."""
IdPart = Callable[[Any], str]
"""Function that returns the part of the default run id for an option's value, or ""."""


@dataclass(frozen=True)
class OptionUse:
    """Where the value of an option is used.

    is_recorded: run.json stores the value. identifies_run: a later command continues the run only with the same value.
    is_shown: comparisons and JUnit files show the value. id_part: function that returns the value's part of the default
    run id, or "".
    """

    is_recorded: bool = True
    identifies_run: bool = False
    is_shown: bool = False
    id_part: IdPart = lambda value: ""


def _option_field(default: Any, help: str, *, is_recorded: bool = True, **options: Any) -> Any:
    """Return a dataclass field that has a command-line option and an OptionUse."""
    uses = {name: options.pop(name) for name in ("identifies_run", "is_shown", "id_part") if name in options}
    return option(default, help, metadata={USE_KEY: OptionUse(is_recorded=is_recorded, **uses)}, **options)


_identity_field = partial(_option_field, identifies_run=True, is_shown=True)
_unrecorded_field = partial(_option_field, is_recorded=False)


def _id_part_unless(*values: Any, text: str = "{}") -> IdPart:
    """Return an IdPart that returns "" for a value in ``values``, and else the value formatted with ``text``."""
    return lambda value: "" if value in values else text.format(value)


@dataclass(frozen=True)
class RunOptions:
    """The user's options for a run of one suite; card and size may be 'auto'.

    The default run id is composed of values in the order of the fields. Two fields have no option: ``suite`` is an
    argument of the command, and ``command`` is the command line itself.
    """

    suite: str = field(default="", metadata={USE_KEY: OptionUse(identifies_run=True, id_part=str)})
    rows: tuple[str, ...] = _option_field(
        (), "Run only this row; may be given several times.", flag="--row", metavar="ROW"
    )
    card: str = _identity_field(AUTO, "GPU model that the rows target; auto: the machine's own.", id_part=str)
    size: SizeOption = _identity_field(
        AUTO, "Size of the models; auto: full where a GPU has enough memory, else tiny.", id_part=str
    )
    length: Literal["verdict", "as-taught"] = _identity_field(
        "verdict",
        "Number of steps; verdict: as many as the evaluation needs; as-taught: all steps of the lab.",
        id_part=str,
    )
    site: str = _identity_field(
        "local",
        "Where rows run: local, slurm, or chameleon (a leased machine).",
        id_part=_id_part_unless("local", "slurm"),
    )
    profile: str | None = _identity_field(
        None,
        "With --site slurm: roihu, lumi, mahti, puhti, or the path of a YAML file.",
        id_part=lambda profile: Path(profile).stem if profile else "",
    )
    account: str | None = _unrecorded_field(None, "With --site slurm: the project that is charged for the jobs.")
    weights: Weights = _identity_field("random", "Initial weights.", id_part=_id_part_unless("random"))
    input: Input = _identity_field(
        "as-taught",
        "Input of BLIP-2: the caption only, or the image and the caption.",
        id_part=_id_part_unless("as-taught"),
    )
    in_container: bool = _identity_field(
        False,
        "With --site local: run rows in the project's image, by Docker.",
        flag="--in-container",
        id_part=lambda chosen: "container" if chosen else "",
    )
    image_variant: ImageVariant = _identity_field(
        "current",
        "Library versions of the image, on leased machines or with --in-container.",
        flag="--versions",
        id_part=_id_part_unless("current", text="{}-versions"),
    )
    gpus_per_node: int | None = _identity_field(
        None,
        "If a row needs more than N GPUs per node, run it on N per node.",
        metavar="N",
        id_part=_id_part_unless(None, text="{}gpus"),
    )
    share_gpus: bool = _identity_field(
        False,
        "With --site local: rows whose times are not evaluated share a GPU that emulates a smaller card.",
        flag="--share-gpus",
        id_part=lambda chosen: "shared" if chosen else "",
    )
    data: str = _option_field(
        SYNTHETIC,
        "Training data: synthetic, hub (published texts), gourmetgram-captions (the lab's archive), a folder, or an "
        "archive's path or URL.",
        is_shown=True,
        id_part=lambda data: "" if data == SYNTHETIC else "realdata",
    )
    data_sha256: str | None = _identity_field(None, "SHA-256 of the archive; required for a URL.")
    run_id: str | None = _option_field(None, "Name of the run; default: composed of the options.")
    results: Path = _unrecorded_field(Path("results"), "Folder that runs are stored in.", metavar="DIR")
    host_memory_gib: float | None = _unrecorded_field(
        None, "Host memory of this machine in GiB, if the machine reports less than it has.", minimum=1
    )
    rerun: bool = _unrecorded_field(False, "Run finished rows again.", flag="--rerun")
    keep_outdated: bool = _unrecorded_field(
        False,
        "Keep outdated results, which are from other library versions, another driver or another GPU.",
        flag="--keep-outdated",
    )
    predict: bool = _unrecorded_field(True, "Predict the rows at full size first.")
    predict_only: bool = _unrecorded_field(
        False, "Predict the rows at full size and evaluate the predictions; run no row.", flag="--predict-only"
    )
    command: str = field(default="", metadata={USE_KEY: OptionUse()})


OPTION_USES: dict[str, OptionUse] = {one.name: one.metadata[USE_KEY] for one in fields(RunOptions)}


def options_where(test: Callable[[OptionUse], bool]) -> tuple[str, ...]:
    """Return the names of the options whose OptionUse passes ``test``, in the order of the fields."""
    return tuple(name for name, use in OPTION_USES.items() if test(use))


RECORDED_OPTIONS = options_where(lambda use: use.is_recorded)
IDENTITY_OPTIONS = options_where(lambda use: use.identifies_run)
SHOWN_OPTIONS = options_where(lambda use: use.is_shown)


def recorded_values(options: RunOptions) -> dict[str, Any]:
    """Return the values to record in run.json, by name of the option."""
    return {name: getattr(options, name) for name in RECORDED_OPTIONS}


def default_run_id(options: RunOptions) -> str:
    """Return the run id derived from the options, so that the same command finds the same folder again.

    ``card`` and ``size`` must be resolved, not 'auto'.
    """
    parts = (use.id_part(getattr(options, name)) for name, use in OPTION_USES.items())
    return "-".join(filter(None, parts))
