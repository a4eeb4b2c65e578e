"""The prediction of a traced script, from the phantom device's log and what the watcher found."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from experiments.prediction.peak import CATEGORIES, UNLIMITED, MemoryTags, failure_in_replay, needed_bytes, peak_shares
from experiments.prediction.phantom.library import Living, Phantom
from experiments.prediction.script.record import (
    CardAnswer,
    Ended,
    LineShare,
    ModuleShare,
    PeakBlock,
    PhaseBegin,
    ScriptPrediction,
)
from experiments.prediction.script.traced import imports
from experiments.prediction.script.traced.lines import Lines
from experiments.prediction.script.traced.watch import Watcher
from experiments.results.provenance import versions
from experiments.results.schema import Phase
from experiments.suites.cards import card_named
from experiments.system.files import GIB

POINTS = 400
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
"""A layer's place in the name of a module."""
SHOWN = 60
"""Maximum length of the lists of modules and lines."""


class Traced(NamedTuple):
    """A running trace: the cards to answer for, the rank of how many, and when it began (perf_counter)."""

    phantom: Phantom
    cards: Sequence[str]
    rank: int
    ranks: int
    begun: float


def prediction(traced: Traced, watcher: Watcher, lines: Lines, ended: Ended) -> ScriptPrediction:
    """Return what is predicted of the rank that ran in this process."""
    phantom, tags, model = traced.phantom, watcher.tags, watcher.model
    events, free = tags.event_count, traced.phantom.replay(UNLIMITED)
    at_peak = peak_shares(phantom, tags, free)
    phase, step, _ = tags.position_at(free.highest_at)
    least = needed_bytes(phantom, free)
    living = phantom.living(free.highest_at)
    counted = list(model.parameters()) if model else []
    return ScriptPrediction(
        rank=traced.rank,
        ranks=traced.ranks,
        model=_class_name(model) if model else "",
        parameters=sum(one.numel() for one in counted),
        trainable_parameters=sum(one.numel() for one in counted if one.requires_grad),
        optimizers=tuple(watcher.optimizers),
        steps=watcher.steps,
        ended=ended,
        peak_gib=free.peak_allocated / GIB,
        reserved_gib=free.peak_reserved / GIB,
        at_peak=at_peak,
        peak_phase=phase,
        peak_step=step,
        host_gib=phantom.host_peak() / GIB,
        cards=tuple(_answer(name, phantom, tags, least) for name in traced.cards),
        timeline_gib=tuple(size / GIB for size in phantom.timeline(POINTS)),
        phases=tuple(PhaseBegin(at=begun / max(1, events), phase=phase) for begun, phase in tags.phases),
        modules=_modules(living, watcher),
        lines=_lines(living, lines),
        blocks=_blocks(living, watcher, lines),
        notes=tuple(imports.notes()),
        versions={"torch": torch.__version__, **versions()},
        elapsed_s=time.perf_counter() - traced.begun,
    )


def _class_name(model: torch.nn.Module) -> str:
    """Return the class of the model inside wrappers for several ranks, and below adapters."""
    while isinstance(inner := getattr(model, "module", None), torch.nn.Module):
        model = inner
    base: Any = getattr(model, "get_base_model", None)
    if base is not None:
        return f"{type(base()).__name__} with adapters"
    return type(model).__name__


def _answer(name: str, phantom: Phantom, tags: MemoryTags, least: int) -> CardAnswer:
    usable = round(card_named(name).usable_gib * GIB)
    limited = phantom.replay(usable)
    return CardAnswer(
        card=name,
        usable_gib=usable / GIB,
        needed_gib=least / GIB,
        reserved_gib=limited.peak_reserved / GIB,
        retries=limited.retries,
        failure=failure_in_replay(limited, tags),
    )


def _modules(living: Sequence[Living], watcher: Watcher) -> tuple[ModuleShare, ...]:
    """Return what is alive at the peak by the module, phase and category that it was allocated for, largest first."""
    sizes: Counter[tuple[str, Phase, str]] = Counter()
    for one in living:
        phase, *_ = watcher.tags.position_at(one.born)
        sizes[watcher.modules.at(one.born), phase, CATEGORIES[one.category]] += one.size
    return tuple(
        ModuleShare(module=module, phase=phase, category=category, size_gib=size / GIB)
        for (module, phase, category), size in sizes.most_common(SHOWN)
    )


def _lines(living: Sequence[Living], lines: Lines) -> tuple[LineShare, ...]:
    """Return the same by the line of the script that allocated it."""
    sizes: Counter[tuple[str, str]] = Counter()
    for one in living:
        sizes[lines.marks.at(one.born), CATEGORIES[one.category]] += one.size
    return tuple(
        LineShare(line=line, category=category, size_gib=size / GIB)
        for (line, category), size in sizes.most_common(SHOWN)
    )


def _blocks(living: Sequence[Living], watcher: Watcher, lines: Lines) -> tuple[PeakBlock, ...]:
    """Return the same by category, kind of module and line."""
    sizes: Counter[tuple[str, str, str]] = Counter()
    for one in living:
        module = NUMBER.sub("*", watcher.modules.at(one.born))
        sizes[CATEGORIES[one.category], module, lines.marks.at(one.born)] += one.size
    return tuple(
        PeakBlock(category=category, module=module, line=line, size_gib=size / GIB)
        for (category, module, line), size in sizes.most_common()
    )
