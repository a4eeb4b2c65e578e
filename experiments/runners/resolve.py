"""Resolve the card, size, rows and run id of a run for a node, and check the resulting settings of the rows."""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from experiments.errors import InputError
from experiments.run_options import AUTO, RunOptions, default_run_id
from experiments.runners.admission import too_small_reason
from experiments.suites.cards import card_of_device
from experiments.suites.choices import Size, SizeOption
from experiments.suites.suite import Suite
from provision.models import Node

LATEST = "latest"
"""Name of the link to the latest run; not allowed as a run id."""
MULTI_RANK_STRATEGIES = ("ddp", "fsdp")
MIN_RANKS = 2
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def resolve(options: RunOptions, suite: Suite, node: Node) -> RunOptions:
    """Return ``options`` with card, size, rows and run id resolved for ``node``.

    Raises InputError for options that do not match the suite or the node.
    """
    card = resolve_card(suite, options.card, node)
    rows = _resolve_rows(suite, options.rows, card)
    size = _resolve_size(options.size, card, node)
    if options.weights == "pretrained" and size == "tiny":
        raise InputError("weights pretrained: a tiny model has no pretrained weights; allowed: random, or size full")
    if options.weights == "pretrained":
        _reject_unpublished(suite, rows, card)
    _check_run_id(options.run_id)
    resolved = replace(options, card=card, size=size, rows=rows)
    return replace(resolved, run_id=options.run_id or default_run_id(resolved))


def datasets_of(options: RunOptions, suite: Suite) -> Collection[str]:
    """Return the names of the data sets of the rows in ``options``, the return value of ``resolve``.

    Raises InputError if a row would have too few ranks with --gpus-per-node.
    """
    limit = options.gpus_per_node
    if limit is not None and limit < 1:
        raise InputError(f"--gpus-per-node {limit}: allowed: 1 or more")
    datasets = set()
    for row in options.rows:
        settings = suite.settings(suite.row(row), options.card, limit)
        if settings.strategy in MULTI_RANK_STRATEGIES and settings.world_size < MIN_RANKS:
            problem = f"row {row!r} of suite {suite.suite} would have 1 rank, but {settings.strategy} needs more"
            raise InputError(f"--gpus-per-node {limit}: {problem}; allowed: {MIN_RANKS} or more")
        datasets.add(settings.dataset)
    return datasets


def resolve_card(suite: Suite, requested: str, node: Node) -> str:
    """Return the requested card.

    For 'auto', return the card of the node's GPU if the suite has rows for it. Otherwise, return the suite's first card
    that the GPU can emulate, or the suite's first card if there is none.
    """
    if requested != AUTO:
        suite.rows_for(requested)
        return requested
    if not node.gpus:
        return suite.cards[0]
    gpu = node.gpus[0]
    own = card_of_device(gpu.name, gpu.memory_gib)
    if own in suite.all_cards:
        return own
    return next((card for card in suite.cards if not too_small_reason(gpu, card)), suite.cards[0])


def _resolve_size(requested: SizeOption, card: str, node: Node) -> Size:
    """Return the requested size; for 'auto', full if the node's GPU is the card or can emulate it, else tiny."""
    if requested != "auto":
        return requested
    return "full" if node.gpus and not too_small_reason(node.gpus[0], card) else "tiny"


def _resolve_rows(suite: Suite, requested: Sequence[str], card: str) -> tuple[str, ...]:
    """Return the ids of the requested rows in the suite's order; without a request, of all rows for the card."""
    rows = [row.id for row in suite.rows_for(card)]
    for row_id in requested:
        if suite.row(row_id).id not in rows:
            raise InputError(f"suite {suite.suite}: row {row_id!r} is not for {card}; allowed: {', '.join(rows)}")
    return tuple(row for row in rows if row in requested or not requested)


def _reject_unpublished(suite: Suite, rows: Sequence[str], card: str) -> None:
    """Raise InputError if a row's twin for this card has a smaller model without published weights."""
    for row in rows:
        settings = suite.settings(suite.row(row), card)
        scale, model = suite.twin_note(row, card), suite.model_in_suite(settings)
        if scale and model and not model.hub:
            raise InputError(
                f"weights pretrained: row {row!r} is {scale}, and its model {settings.model} has no pretrained weights;"
                " allowed: random"
            )


def _check_run_id(run_id: str | None) -> None:
    """Raise InputError for a run id that cannot be the name of a folder in the results folder."""
    if run_id is not None and (run_id == LATEST or not RUN_ID.fullmatch(run_id)):
        raise InputError(f"--run-id {run_id}: allowed: letters, digits, '.', '_' and '-', and not {LATEST!r}")
