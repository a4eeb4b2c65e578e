"""One command from beginning to end: machine, choices, plan, predictions, rows, verdicts, report."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from experiments.cache import cache_folder
from experiments.card import card_of_device
from experiments.errors import InputError
from experiments.judge import Judgement, judge
from experiments.launch.admission import check_disk, refusal, too_small
from experiments.launch.data_set import SYNTHETIC, DataSet, Watch, prepare
from experiments.launch.local import GRACE_S, WORKER, LocalRunner, emptied
from experiments.launch.lock import locked
from experiments.launch.outcome import write_refusal
from experiments.launch.plan import Planned, continued, plan
from experiments.launch.progress import View
from experiments.provenance import git_commit
from experiments.recipe import Input, Length, Size, Suite, Weights, suite_named
from experiments.report import write_report
from experiments.run import Run, RunFolder
from experiments.sizing import foresee
from provision.model import Node
from provision.site import site_named

AUTO = "auto"
LATEST = "latest"


@dataclass(frozen=True)
class Options:
    """What a person asked for. card and size may be 'auto'; host_memory_gib overrides what the machine reports."""

    suite: str
    rows: tuple[str, ...] = ()
    site: str = "local"
    card: str = AUTO
    size: str = AUTO
    length: Length = "verdict"
    weights: Weights = "random"
    data: str = SYNTHETIC
    data_sha256: str | None = None
    input: Input = "as-taught"
    run_id: str | None = None
    results: Path = Path("results")
    host_memory_gib: float | None = None
    rerun: bool = False
    predict: bool = True
    command: str = ""


@dataclass(frozen=True)
class Done:
    """What a run left: its folder, its page and its verdicts."""

    folder: Path
    report: Path
    judgement: Judgement


def run_suite(
    options: Options,
    view: View,
    watch: Watch = lambda done, total: None,
    worker: str = WORKER,
    grace_s: float = GRACE_S,
) -> Done:
    """Run what is missing or changed of one suite, judge and report all of it.

    ``view`` is told of the rows, ``watch`` of a download (bytes done, bytes in all); ``worker`` is the module that runs
    a row, ended ``grace_s`` after the row's own time limit. InputError for everything that the person can put right,
    also when every row was refused; Interrupted and NoRoomLeft as LocalRunner.run raises them.
    """
    suite = suite_named(options.suite)
    node = site_named(options.site).node()
    card = _card(suite, options.card, node)
    rows = _rows(suite, options.rows, card)
    size = _size(options.size, card, node)
    if options.weights == "pretrained" and size == "tiny":
        raise InputError("weights pretrained: a miniature (size tiny) has none; allowed: random, or size full")
    datasets = {suite.settings(suite.row(row), card).dataset for row in rows}
    data = prepare(options.data, options.data_sha256, cache_folder(), datasets, watch)
    run = _run(options, suite, rows, card, size, data, node)
    check_disk(options.results, len(rows))
    folder = RunFolder(options.results / run.run_id)
    with locked(folder.path):
        run_with_earlier_rows = continued(folder, run, suite)
        planned = plan(suite, run, folder, options.rerun)
        folder.write_run(run_with_earlier_rows)
        _point_latest_at(folder.path)
        view.says(f"{folder.path}: {suite.title}, {len(rows)} row(s), size {size} for {card}, on {node.description}")
        if options.size == AUTO and size == "tiny" and node.gpus:
            view.says(f"size tiny, because {too_small(node.gpus[0], card)}")
        if options.predict:
            foresee(suite, run_with_earlier_rows, folder, view)
        _carry_out(planned, folder, node, options.host_memory_gib or node.host_memory_gib, view, worker, grace_s)
        report = write_report(folder)
        return Done(folder.path, report, judge(suite, run_with_earlier_rows, folder.results()))


def default_run_id(options: Options, card: str, size: Size) -> str:
    """The run's name by what was chosen, so that the same command finds the same folder again."""
    parts = [options.suite, card, size, options.length]
    parts += [options.weights] if options.weights != "random" else []
    parts += [options.input] if options.input != "as-taught" else []
    parts += ["realdata"] if options.data != SYNTHETIC else []
    return "-".join(parts)


def _carry_out(
    planned: Sequence[Planned],
    folder: RunFolder,
    node: Node,
    host_memory_gib: float,
    view: View,
    worker: str,
    grace_s: float,
) -> None:
    """Keep, refuse or run each row; InputError when there was none to keep or to run."""
    for row in planned:
        if not row.run:
            view.keeps(row)
    refused = {row.row: why for row in planned if row.run and (why := refusal(row.spec, node, host_memory_gib))}
    for row in planned:
        if row.row in refused:
            place = emptied(folder.row(row.row))
            view.ends(row.spec, write_refusal(place, row.spec, node, refused[row.row]))
    if len(refused) == len(planned):
        write_report(folder)
        raise InputError("; ".join(dict.fromkeys(refused.values())))
    if missing := [row for row in planned if row.run and row.row not in refused]:
        LocalRunner(folder, node, host_memory_gib, view, worker, grace_s).run(missing)


def _run_id(asked: str | None) -> str | None:
    """The run id asked for; InputError when it cannot be a folder's name under results/."""
    if asked is not None and (asked == LATEST or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", asked)):
        raise InputError(f"--run-id {asked}: allowed: letters, digits, '.', '_' and '-', and not {LATEST!r}")
    return asked


def _rows(suite: Suite, asked: Sequence[str], card: str) -> tuple[str, ...]:
    """The ids of the rows asked for (none named: all that the card has), in the recipe's order."""
    there = [row.id for row in suite.rows_for(card)]
    for row_id in asked:
        if suite.row(row_id).id not in there:
            raise InputError(f"suite {suite.suite}: row {row_id!r} is not for {card}; allowed: {', '.join(there)}")
    return tuple(row for row in there if row in asked or not asked)


def _card(suite: Suite, asked: str, node: Node) -> str:
    """The card asked for; 'auto': the machine's own, else the first it can stand in for, else the suite's first."""
    if asked != AUTO:
        suite.rows_for(asked)
        return asked
    if not node.gpus:
        return suite.cards[0]
    own = card_of_device(node.gpus[0].name)
    fitting = [card for card in suite.cards if card == own] + [
        card for card in suite.cards if not too_small(node.gpus[0], card)
    ]
    return fitting[0] if fitting else suite.cards[0]


def _size(asked: str, card: str, node: Node) -> Size:
    """The size asked for; 'auto': full where a GPU can stand in for the card, else tiny."""
    if asked == "full":
        return "full"
    if asked == "tiny":
        return "tiny"
    return "full" if node.gpus and not too_small(node.gpus[0], card) else "tiny"


def _run(
    options: Options, suite: Suite, rows: tuple[str, ...], card: str, size: Size, data: DataSet, node: Node
) -> Run:
    return Run(
        run_id=_run_id(options.run_id) or default_run_id(options, card, size),
        suite=suite.suite,
        recipe_version=suite.version,
        rows=rows,
        site=options.site,
        card=card,
        size=size,
        length=options.length,
        weights=options.weights,
        data=data.data,
        data_sha256=data.sha256,
        input=options.input,
        command=options.command,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=git_commit(),
        host=node.description,
    )


def _point_latest_at(folder: Path) -> None:
    """Make results/latest a link to the run's folder."""
    link = folder.parent / LATEST
    fresh = folder.parent / f".{LATEST}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(folder.name)
    fresh.replace(link)
