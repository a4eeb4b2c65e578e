"""`testbed`: predict, run, judge and report what a suite states.

Exit codes: 0 all that was judged held, 1 something did not hold, 2 a user's mistake (one line on stderr), 3 something
broke, 130 interrupted.
"""

import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from experiments.cli import configure, lease, orphans, remote, reproduce
from experiments.cli.lease import print_json
from experiments.errors import InputError, Interrupted
from provision.configure.playbook import ImageVariant
from provision.errors import ProvisionError, SiteError

if TYPE_CHECKING:
    from experiments.inputs.download import DownloadCallback
    from experiments.pipeline import Done
    from experiments.prediction.service import Say
    from experiments.suites.row_spec import RowSpec

INTERRUPTED = 130
BROKE = 3
BAD_INPUT = 2
PIPE_WIDTH = 160

app = typer.Typer(
    name="testbed",
    help=f"Runs, measures and judges large-model training experiments.\n\n{(__doc__ or '').partition(chr(10) * 2)[2]}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(lease.app)
app.add_typer(orphans.app)
app.add_typer(configure.app)
app.add_typer(reproduce.app)
app.add_typer(remote.app)
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout; everything else goes to stderr.")]
Target = Annotated[str | None, typer.Argument(metavar="[SUITE[/ROW]]", help="Rows of the suites.")]
Card = Annotated[str | None, typer.Option(help="The GPU; for rows of a suite else each that they are for.")]
Model = Annotated[
    str | None, typer.Option(help="Instead of rows: a name of models.yaml, a config.json, or an id on the hub.")
]
Batch = Annotated[int | None, typer.Option(help="Samples of one GPU and one micro-step; else 1.")]
Seq = Annotated[int | None, typer.Option(help="Tokens of each text; else 512.")]
Accumulate = Annotated[int | None, typer.Option(help="Micro-steps to an optimizer step; else 1.")]
Devices = Annotated[int | None, typer.Option(help="GPUs; else 1.")]
Precision = Annotated[Literal["32-true", "bf16-true", "bf16-mixed"] | None, typer.Option(help="Else 32-true.")]
Optim = Annotated[Literal["adamw", "sgd", "adam_8bit", "deepspeed_cpu"] | None, typer.Option(help="Else adamw.")]
Strategy = Annotated[
    Literal["auto", "ddp", "fsdp", "deepspeed_stage_2_offload", "deepspeed_stage_3_offload"] | None,
    typer.Option(help="Else auto: DDP on several GPUs."),
]
Checkpointing = Annotated[bool, typer.Option("--activation-checkpointing", help="Compute activations twice.")]
LoraR = Annotated[int | None, typer.Option(help="Rank of low-rank adapters; else all weights are trained.")]
LoraTargets = Annotated[str | None, typer.Option(help="Layers with adapters, comma-separated, or all-linear.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="results/<run-id>, or a folder of several.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=list(arguments), obj=shlex.join(["testbed", *arguments]))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except SiteError as problem:
        print(f"testbed: {problem}", file=sys.stderr)
        return BROKE
    except (InputError, ProvisionError) as mistake:
        print(f"testbed: {mistake}", file=sys.stderr)
        return BAD_INPUT
    except (Interrupted, KeyboardInterrupt):
        print("testbed: interrupted; finished rows are kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return BROKE
    return 0


@app.command()
def run(
    context: typer.Context,
    suites: Annotated[list[str], typer.Argument(metavar="SUITE...", help="`testbed list` names them.")],
    row: Annotated[list[str] | None, typer.Option(help="Only this row; may be given several times.")] = None,
    site: Annotated[
        str, typer.Option(help="Where the machine comes from: local, slurm, chameleon (what is leased there).")
    ] = "local",
    profile: Annotated[
        str | None, typer.Option(help="With --site slurm: roihu, lumi, mahti, puhti, or a YAML file of your own.")
    ] = None,
    account: Annotated[str | None, typer.Option(help="With --site slurm: the project that pays for the jobs.")] = None,
    card: Annotated[str, typer.Option(help="The GPU that the rows are about; auto: the machine's own.")] = "auto",
    size: Annotated[
        Literal["auto", "full", "tiny"], typer.Option(help="auto: full where a GPU is large enough, else tiny.")
    ] = "auto",
    length: Annotated[
        Literal["verdict", "as-taught"], typer.Option(help="As many steps as a verdict needs, or all that are taught.")
    ] = "verdict",
    weights: Annotated[Literal["random", "pretrained"], typer.Option(help="Weights to begin with.")] = "random",
    data: Annotated[
        str, typer.Option(help="synthetic, hub (published texts), a folder, or the path or URL of an archive.")
    ] = "synthetic",
    data_sha256: Annotated[str | None, typer.Option(help="Checksum of the archive; a URL needs one.")] = None,
    input: Annotated[
        Literal["as-taught", "with-image"], typer.Option(help="The caption alone, or the image with it.")
    ] = "as-taught",
    gpus_per_node: Annotated[
        int | None, typer.Option(metavar="N", help="Rows that want more GPUs of a node run on N.")
    ] = None,
    image_variant: Annotated[
        ImageVariant, typer.Option("--versions", help="The versions of a leased machine's image.")
    ] = "current",
    run_id: Annotated[str | None, typer.Option(help="The run's name; else made of the choices.")] = None,
    results: Annotated[Path, typer.Option(metavar="DIR", help="Where runs are kept.")] = Path("results"),
    host_memory_gib: Annotated[
        float | None, typer.Option(min=1, help="Memory of this machine where it reports less than it can give.")
    ] = None,
    rerun: Annotated[bool, typer.Option("--rerun", help="Run finished rows again too.")] = False,
    predict: Annotated[bool, typer.Option(help="Predict the rows at full size first.")] = True,
    cancel: Annotated[bool, typer.Option("--cancel", help="End the jobs that the same command has submitted.")] = False,
    as_json: Json = False,
) -> None:
    """Run what is missing or changed of each SUITE, and say what held."""
    from experiments.cli.tables import show_runs
    from experiments.pipeline import RunOptions, cancel_suites, options_per_suite, run_suites
    from experiments.runners.progress import view_on

    options = RunOptions(
        suite=suites[0],
        rows=tuple(row or ()),
        site=site,
        profile=profile,
        account=account,
        card=card,
        size=size,
        length=length,
        weights=weights,
        data=data,
        data_sha256=data_sha256,
        input=input,
        gpus_per_node=gpus_per_node,
        image_variant=image_variant,
        run_id=run_id,
        results=results,
        host_memory_gib=host_memory_gib,
        rerun=rerun,
        predict=predict,
        command=context.obj,
    )
    console = Console(stderr=as_json)
    if cancel:
        cancelled = cancel_suites(options_per_suite(suites, options), view_on(console))
        console.print(f"cancelled: {', '.join(cancelled) or 'nothing'}", soft_wrap=True, highlight=False)
        return
    finished = show_runs(
        run_suites(options_per_suite(suites, options), view_on(console), _download_on(console)), console
    )
    if as_json:
        print_json([_done_as_json(done) for done in finished])
    raise typer.Exit(max(done.judgement.exit_code for done in finished))


@app.command()
def predict(
    context: typer.Context,
    rows: Target = None,
    card: Card = None,
    model: Model = None,
    batch: Batch = None,
    seq: Seq = None,
    accumulate: Accumulate = None,
    devices: Devices = None,
    precision: Precision = None,
    optim: Optim = None,
    strategy: Strategy = None,
    activation_checkpointing: Checkpointing = False,
    lora_r: LoraR = None,
    lora_targets: LoraTargets = None,
    as_json: Json = False,
) -> None:
    """Predict the GPU memory of rows, or of any model in any setting, without a GPU."""
    from experiments.prediction.service import reject_if_parameters_exceed, traced
    from experiments.prediction.tables import prediction_as_data, prediction_tables

    failures: list[Exception] = []
    with _progress() as say:
        predictions = traced(_specs(context.params), say, lambda spec, problem: failures.append(problem))
    if model is not None and predictions:
        reject_if_parameters_exceed(predictions[0])
    found = [prediction_as_data(prediction) for prediction in predictions]
    if as_json:
        print_json(found[0] if model is not None and found else found)
    elif predictions:
        _wide_console().print(prediction_tables(predictions))
    for problem in failures:
        print(problem, file=sys.stderr)
    if failures:
        raise typer.Exit(2 if any(isinstance(problem, InputError) for problem in failures) else 3)


@app.command()
def fit(
    context: typer.Context,
    rows: Target = None,
    card: Card = None,
    model: Model = None,
    batch: Batch = None,
    seq: Seq = None,
    accumulate: Accumulate = None,
    devices: Devices = None,
    precision: Precision = None,
    optim: Optim = None,
    strategy: Strategy = None,
    activation_checkpointing: Checkpointing = False,
    lora_r: LoraR = None,
    lora_targets: LoraTargets = None,
    as_json: Json = False,
) -> None:
    """Find the largest batch that fits, and the single changes that would let a row in that does not fit."""
    from experiments.prediction.fit import fit as fit_row
    from experiments.prediction.service import traced
    from experiments.prediction.tables import fit_as_data, fit_view

    if model is None and "/" not in (rows or ""):
        raise InputError("fit: SUITE/ROW or --model is needed")
    with _progress() as say:
        fits = [fit_row(spec, lambda specs: traced(specs, say)) for spec in _specs(context.params)]
    if as_json:
        found = [fit_as_data(one) for one in fits]
        print_json(found[0] if model is not None else found)
    else:
        for one in fits:
            _wide_console().print(fit_view(one))


@app.command()
def judge(folder: RunPath, as_json: Json = False) -> None:
    """Judge kept results by today's recipes; nothing is written."""
    from experiments.cli.tables import changes_table, verdict_table
    from experiments.report import rejudge

    judged = rejudge(folder)
    if as_json:
        print_json([one.model_dump(mode="json") for one in judged])
    else:
        for one in judged:
            Console().print(verdict_table(one.judgement))
            if one.changes:
                Console().print(changes_table(one.changes))
    raise typer.Exit(max(one.judgement.exit_code for one in judged))


@app.command()
def report(folder: RunPath) -> None:
    """Write the report of a run anew."""
    from experiments.report import write_report
    from experiments.results.run_folder import RunFolder

    print(write_report(RunFolder(folder)))


@app.command()
def compare(a: Path, b: Path, as_json: Json = False) -> None:
    """Show what differs between two runs."""
    from experiments.report import compare as compare_runs
    from experiments.report import comparison_table
    from experiments.results.run_folder import RunFolder

    comparison = compare_runs(RunFolder(a), RunFolder(b))
    if as_json:
        print_json(comparison.model_dump(mode="json"))
    else:
        Console().print(comparison_table(comparison))


@app.command("list")
def list_(
    suite: Annotated[str | None, typer.Argument(help="One suite, with its rows and settings.")] = None,
    card: Annotated[str | None, typer.Option(help="The card that settings are for; else the suite's first.")] = None,
    as_json: Json = False,
) -> None:
    """List the suites, or the rows of one."""
    from experiments.cli.tables import rows_as_data, rows_table, suites_as_data, suites_table

    if suite is None and card:
        raise InputError("--card: allowed with a suite only")
    if as_json:
        print_json(rows_as_data(suite, card) if suite else suites_as_data())
    else:
        Console().print(rows_table(suite, card) if suite else suites_table())


@app.command()
def schema() -> None:
    """Print the JSON schemas of result.json, run.json, verdict.json and predictions.json."""
    from pydantic import BaseModel

    from experiments.results.judge import Judgement
    from experiments.results.run_folder import Predictions, Run
    from experiments.results.schema import Result

    models: dict[str, type[BaseModel]] = {
        "result": Result,
        "run": Run,
        "verdict": Judgement,
        "predictions": Predictions,
    }
    print_json({name: model.model_json_schema() for name, model in models.items()})


def _specs(flags: dict[str, Any]) -> "list[RowSpec]":
    """The rows that the flags of `predict` and `fit` are about."""
    from experiments.prediction.custom import CustomTraining
    from experiments.prediction.service import rows_asked

    given = {name: flags[name] for name in CustomTraining.__dataclass_fields__}
    about = {name: value for name, value in given.items() if value is not None and value is not False}
    if flags["model"] is None:
        if own := about.keys() - {"card"}:
            raise InputError(f"--{min(own).replace('_', '-')}: needs --model; a row has its own settings")
        return rows_asked(flags["rows"], flags["card"])
    if flags["rows"] is not None:
        raise InputError(f"--model {flags['model']}: allowed without {flags['rows']!r} only")
    if flags["card"] is None:
        from experiments.suites.cards import cards

        raise InputError(f"--model {flags['model']}: needs --card, one of {', '.join(cards())}")
    return [CustomTraining(**about).spec]


@contextmanager
def _progress() -> Iterator["Say"]:
    """Says on stderr how far a prediction is: in one line that changes on a terminal, else in a line each."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda line: print(line, file=sys.stderr, flush=True)
        return
    with console.status("predicting") as status:
        yield status.update


def _wide_console() -> Console:
    """Standard output, wide enough for a table of predictions where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


def _done_as_json(done: "Done") -> dict[str, Any]:
    return {
        "folder": str(done.folder),
        "report": str(done.report),
        "exit_code": done.judgement.exit_code,
        **done.judgement.model_dump(mode="json"),
    }


def _download_on(console: Console) -> "DownloadCallback":
    """Show a download's progress on ``console``, a line for each tenth."""
    shown = -1

    def watch(done: int, total: int | None) -> None:
        nonlocal shown
        tenth = 10 * done // total if total else done // 2**28
        if tenth != shown:
            shown = tenth
            of = f" of {total / 2**20:.0f}" if total else ""
            console.print(f"data: {done / 2**20:.0f}{of} MiB", highlight=False)

    return watch
