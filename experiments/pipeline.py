"""One command from beginning to end: machine, choices, plan, predictions, rows, verdicts, report."""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from experiments.errors import InputError
from experiments.inputs.dataset import DataSet, prepare, prepare_remote
from experiments.inputs.download import DownloadCallback
from experiments.inputs.requirements import HUB, SYNTHETIC
from experiments.prediction.service import predict_rows
from experiments.report import write_report
from experiments.results.judge import Judgement, judge
from experiments.results.provenance import git_commit
from experiments.results.run_folder import Run, RunFolder
from experiments.runners.admission import check_disk, refusal, too_small
from experiments.runners.failed_results import write_refusal
from experiments.runners.local.runner import GRACE_S, WORKER, LocalRunner, clear_row_folder
from experiments.runners.plan import Planned, continued, plan
from experiments.runners.progress import View
from experiments.runners.slurm.runner import SlurmRunner, by_claims_covered
from experiments.runners.targets import Target, target_named
from experiments.suites.cards import card_of_device
from experiments.suites.settings import Settings
from experiments.suites.suite import Input, Length, Size, Suite, Weights, suite_named
from experiments.system.files import cache_folder
from experiments.system.lock import locked
from provision.configure.playbook import ImageVariant
from provision.models import Node

AUTO = "auto"
LATEST = "latest"
FEWEST_RANKS = 2
SHARED = ("ddp", "fsdp")


@dataclass(frozen=True)
class RunOptions:
    """What a person asked for. card and size may be 'auto'; host_memory_gib overrides what the machine reports.

    gpus_per_node: rows that want more GPUs of a node than so many are scaled down. image_variant: the versions that a
    leased machine runs them with.
    """

    suite: str
    rows: tuple[str, ...] = ()
    site: str = "local"
    profile: str | None = None
    account: str | None = None
    card: str = AUTO
    size: str = AUTO
    length: Length = "verdict"
    weights: Weights = "random"
    data: str = SYNTHETIC
    data_sha256: str | None = None
    input: Input = "as-taught"
    gpus_per_node: int | None = None
    image_variant: ImageVariant = "current"
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


@dataclass(frozen=True)
class Prepared:
    """A run whose choices are made and checked; nothing has been written yet."""

    options: RunOptions
    suite: Suite
    place: Target
    host_memory_gib: float
    run: Run
    data: DataSet

    @property
    def node(self) -> Node:
        return self.place.node

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.options.results / self.run.run_id)


@dataclass(frozen=True)
class Intended:
    """A prepared run whose folder is held: what it is with its earlier rows, and what is to become of its rows."""

    prepared: Prepared
    run: Run
    rows: tuple[Planned, ...]


def run_suite(
    options: RunOptions,
    view: View,
    watch: DownloadCallback = lambda done, total: None,
    worker: str = WORKER,
    grace_s: float = GRACE_S,
) -> Done:
    """Run what is missing or changed of one suite; see run_suites."""
    (done,) = run_suites([options], view, watch, worker, grace_s)
    return done


def run_suites(
    several: Sequence[RunOptions],
    view: View,
    watch: DownloadCallback = lambda done, total: None,
    worker: str = WORKER,
    grace_s: float = GRACE_S,
) -> Iterator[Done]:
    """Run what is missing or changed of suites one after the other, judge and report all of each as it is done.

    ``view`` is told of the rows, ``watch`` of a download (bytes done, bytes in all); ``worker`` is the module that runs
    a row, ended ``grace_s`` after the row's own time limit. InputError for everything that the person can put right,
    also when every row of a suite was refused, before any row is run; Interrupted and NoFreeGpu as LocalRunner.run
    raises them.
    """
    with ExitStack() as held:
        place = _place(several[0])
        held.callback(place.close)
        prepared = [_prepared(options, place, watch) for options in several]
        for one in prepared:
            held.enter_context(locked(one.folder.path))
        planned = [_planned(one) for one in prepared]
        for begun in [_begun(one, view) for one in planned]:
            yield _carried_out(begun, view, worker, grace_s)


def cancel_suites(several: Sequence[RunOptions], view: View) -> list[str]:
    """Cancel what runs of suites have submitted at a cluster; the rows whose jobs those were.

    InputError where the site is no cluster, or there is no such run.
    """
    first = several[0]
    place = _place(first)
    if place.cluster is None:
        raise InputError(f"--cancel: --site {first.site} has no jobs; allowed: with a site that has a queue")
    try:
        prepared = [_prepared(options, place) for options in several]
        return [row for one in prepared for row in SlurmRunner(one.folder, place.cluster, view).cancel()]
    finally:
        place.close()


def settled(options: RunOptions, node: Node) -> RunOptions:
    """``options`` with the card and the size that they mean on ``node``."""
    suite = suite_named(options.suite)
    card = _card(suite, options.card, node)
    return replace(options, card=card, size=_size(options.size, card, node))


def rows_left(options: RunOptions, node: Node) -> list[str]:
    """The rows that a run on ``node`` would have to run; the others have their results."""
    prepared = _prepared(options, Target(node))
    return [row.row for row in plan(prepared.suite, prepared.run, prepared.folder, options.rerun) if row.run]


def kept(options: RunOptions, node: Node) -> Done:
    """What an earlier run left, all rows of which have their results, judged and reported anew."""
    prepared = _prepared(options, Target(node))
    run = _planned(prepared).run
    report = write_report(prepared.folder)
    return Done(prepared.folder.path, report, judge(prepared.suite, run, prepared.folder.results()))


def options_per_suite(suites: Sequence[str], options: RunOptions) -> list[RunOptions]:
    """``options`` for each of ``suites``, with those of the rows that it has; a suite that has none is left out.

    InputError for a row that none has.
    """
    names = list(dict.fromkeys(suites))
    if len(names) == 1:
        return [replace(options, suite=names[0])]
    if options.run_id is not None:
        raise InputError(f"--run-id {options.run_id}: allowed with one suite only")
    there = {name: [row.id for row in suite_named(name).rows] for name in names}
    for row in options.rows:
        if not any(row in rows for rows in there.values()):
            raise InputError(f"--row {row}: is in none of the suites {', '.join(names)}")
    own = {name: tuple(row for row in options.rows if row in there[name]) for name in names}
    return [replace(options, suite=name, rows=own[name]) for name in names if own[name] or not options.rows]


def _place(options: RunOptions) -> Target:
    return target_named(options.site, options.profile, options.account, image_variant=options.image_variant)


def _prepared(options: RunOptions, place: Target, watch: DownloadCallback = lambda done, total: None) -> Prepared:
    suite, node = suite_named(options.suite), place.node
    card = _card(suite, options.card, node)
    rows = _rows(suite, options.rows, card)
    size = _size(options.size, card, node)
    if options.weights == "pretrained" and size == "tiny":
        raise InputError("weights pretrained: a miniature (size tiny) has none; allowed: random, or size full")
    datasets = {settings.dataset for settings in _settings(suite, rows, card, options.gpus_per_node)}
    data = _data(options, place, datasets, watch)
    run = _run(options, suite, rows, card, size, data, node)
    check_disk(options.results, [run.spec(suite, row) for row in run.rows], here=place.cluster is None)
    return Prepared(options, suite, place, options.host_memory_gib or node.host_memory_gib, run, data)


def _data(options: RunOptions, place: Target, datasets: Collection[str], watch: DownloadCallback) -> DataSet:
    """The run's data: fetched, where rows run here; else what has to be fetched there."""
    if place.cluster is None:
        return prepare(options.data, options.data_sha256, cache_folder(), datasets, watch)
    cache = "" if options.data in (SYNTHETIC, HUB) else place.cluster.cache
    data = prepare_remote(options.data, options.data_sha256, cache, datasets)
    profile = place.cluster.profile
    if data.user_path and not profile.shared and profile.nodes > 1:
        raise InputError(f"--data {options.data}: {profile.title} shares no folder among its nodes; allowed: a URL")
    return data


def _settings(suite: Suite, rows: tuple[str, ...], card: str, gpus_per_node: int | None) -> list[Settings]:
    """The settings of the rows; InputError when ``gpus_per_node`` leaves too few ranks to one of them."""
    if gpus_per_node is not None and gpus_per_node < 1:
        raise InputError(f"--gpus-per-node {gpus_per_node}: allowed: 1 and more")
    found = {row: suite.settings(suite.row(row), card, gpus_per_node) for row in rows}
    for row, settings in found.items():
        if settings.strategy in SHARED and settings.world_size < FEWEST_RANKS:
            strategy = f"row {row!r} of suite {suite.suite} is left with 1 rank, and {settings.strategy} needs more"
            raise InputError(f"--gpus-per-node {gpus_per_node}: {strategy}; allowed: {FEWEST_RANKS} and more")
    return list(found.values())


def _planned(prepared: Prepared) -> Intended:
    suite, run, folder = prepared.suite, prepared.run, prepared.folder
    rows = plan(suite, run, folder, prepared.options.rerun)
    return Intended(prepared, continued(folder, run, suite), tuple(rows))


def _begun(planned: Intended, view: View) -> Intended:
    """Write run.json, keep or refuse rows; the rows left to be run. InputError when there is none to keep or to run."""
    prepared = planned.prepared
    folder, run, node, options = prepared.folder, prepared.run, prepared.node, prepared.options
    folder.write_run(planned.run)
    _point_latest_at(folder.path)
    words = f"{prepared.suite.title}, {len(run.rows)} row(s), size {run.size} for {run.card}, on {node.description}"
    view.says(f"{folder.path}: {words}")
    if options.size == AUTO and run.size == "tiny" and node.gpus:
        view.says(f"size tiny, because {too_small(node.gpus[0], run.card)}")
    for row in planned.rows:
        if not row.run:
            view.keeps(row)
    refused = _refused(planned, view)
    if len(refused) == len(planned.rows):
        write_report(folder)
        raise InputError("; ".join(dict.fromkeys(refused.values())))
    return replace(planned, rows=tuple(row for row in planned.rows if row.run and row.row not in refused))


def _refused(planned: Intended, view: View) -> dict[str, str]:
    """The rows that the machine cannot run, each with a result that says why."""
    prepared = planned.prepared
    folder, node = prepared.folder, prepared.node
    cluster = prepared.place.cluster
    nodes = cluster.profile.nodes if cluster else 1
    memory_gib = prepared.host_memory_gib
    refused_by = partial(refusal, node=node, host_memory_gib=memory_gib, here=cluster is None, nodes=nodes)
    waiting = [row for row in planned.rows if row.run]
    refused = {row.row: why for row in waiting if (why := refused_by(row.spec))}
    for row in waiting:
        if row.row in refused:
            place = clear_row_folder(folder.row(row.row))
            view.ends(row.spec, write_refusal(place, row.spec, node, refused[row.row]))
    return refused


def _carried_out(begun: Intended, view: View, worker: str, grace_s: float) -> Done:
    """Predict, run the missing rows, judge and report."""
    prepared, folder = begun.prepared, begun.prepared.folder
    if prepared.options.predict:
        predict_rows(prepared.suite, begun.run, folder, view)
    if begun.rows:
        _run_rows(begun, view, worker, grace_s)
    report = write_report(folder)
    return Done(folder.path, report, judge(prepared.suite, begun.run, folder.results()))


def _run_rows(begun: Intended, view: View, worker: str, grace_s: float) -> None:
    prepared, place = begun.prepared, begun.prepared.place
    if place.cluster is None:
        LocalRunner(prepared.folder, place.node, prepared.host_memory_gib, view, worker, grace_s).run(begun.rows)
        return
    remote = SlurmRunner(
        prepared.folder, place.cluster, view, worker, grace_s, place.ends_at, place.held, data=prepared.data
    )
    remote.run(by_claims_covered(begun.rows, prepared.suite))


def default_run_id(options: RunOptions, card: str, size: Size) -> str:
    """The run's name by what was chosen, so that the same command finds the same folder again."""
    parts = [options.suite, card, size, options.length]
    parts += [Path(options.profile or options.site).stem] if options.site != "local" else []
    parts += [options.weights] if options.weights != "random" else []
    parts += [options.input] if options.input != "as-taught" else []
    parts += [f"{options.image_variant}-versions"] if options.image_variant != "current" else []
    parts += [f"{options.gpus_per_node}gpus"] if options.gpus_per_node is not None else []
    parts += ["realdata"] if options.data != SYNTHETIC else []
    return "-".join(parts)


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
    options: RunOptions, suite: Suite, rows: tuple[str, ...], card: str, size: Size, data: DataSet, node: Node
) -> Run:
    return Run(
        run_id=_run_id(options.run_id) or default_run_id(options, card, size),
        suite=suite.suite,
        recipe_version=suite.version,
        rows=rows,
        site=options.site,
        profile=options.profile,
        card=card,
        size=size,
        length=options.length,
        weights=options.weights,
        data=data.data,
        data_sha256=data.sha256,
        input=options.input,
        gpus_per_node=options.gpus_per_node,
        image_variant=options.image_variant,
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
