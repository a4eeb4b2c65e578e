"""Build the prediction of a traced script from the log of the phantom device and the records of the watcher."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.distributed.fsdp import FSDPModule

from experiments.prediction.peak import (
    CATEGORIES,
    UNLIMITED,
    UNTAGGED,
    MemoryTags,
    failure_in_replay,
    needed_bytes,
    parts_of_peak,
)
from experiments.prediction.phantom.library import LiveAllocation, Phantom
from experiments.prediction.script.record import (
    CardPrediction,
    LineMemory,
    ModuleLineMemory,
    ModuleMemory,
    PhaseStart,
    ScriptPrediction,
    TraceEnd,
)
from experiments.prediction.script.traced import imports
from experiments.prediction.script.traced.attribution.lines import LineTracker
from experiments.prediction.script.traced.missing import substitutes
from experiments.prediction.script.traced.stated import stated_notes, stated_sample
from experiments.prediction.script.traced.step_times import predict_step_times
from experiments.prediction.script.traced.watch import TrainingWatcher, whole_size
from experiments.prediction.times.lag import set_clocks_of
from experiments.prediction.times.phase import RecordedPhase
from experiments.results.memory_parts import TEMPORARY
from experiments.results.predictions import StepTime
from experiments.results.provenance import versions
from experiments.results.schema import Phase
from experiments.suites.cards import card_named
from experiments.system.files import GIB

TIMELINE_POINTS = 400
LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
"""The number of a layer in the name of a module."""
MAX_ENTRIES = 60
"""Maximum length of the lists of modules and lines."""


class Trace(NamedTuple):
    """A running trace: device, cards to predict for, rank, number of ranks, start (value of perf_counter), notes."""

    phantom: Phantom
    cards: Sequence[str]
    rank: int
    ranks: int
    started_s: float
    notes: Sequence[str] = ()


def build_prediction(
    traced: Trace, watcher: TrainingWatcher, lines: LineTracker, ended: TraceEnd, gpu: int = 0, gpus: int = 1
) -> ScriptPrediction:
    """Return the prediction of the rank that ran in this process, for one of the ``gpus`` GPUs that it used."""
    phantom, tags, model = traced.phantom, watcher.tags, watcher.model
    phantom.select_gpu(gpu)
    recorded = watcher.recorder.recorded_phases() if phantom.released_in_use() else []
    set_clocks_of(traced.cards[0], phantom, recorded)
    event_count, unlimited_replay = tags.event_count, phantom.replay(UNLIMITED)
    at_peak = parts_of_peak(phantom, tags, unlimited_replay)
    phase, step, _ = tags.position_at(unlimited_replay.peak_event)
    needed_size = None if recorded else needed_bytes(phantom, unlimited_replay)
    shares = _shares(phantom.live_allocations(unlimited_replay.peak_event), watcher, lines)
    model_parameters = list(model.parameters()) if model else []
    times, time_unknown = predict_step_times(watcher, traced.cards, traced.ranks)
    return ScriptPrediction(
        rank=traced.rank,
        ranks=traced.ranks,
        gpu=gpu,
        gpus=gpus,
        model=_class_name(model) if model else "",
        sample=stated_sample(),
        parameters=sum(map(whole_size, model_parameters)),
        trainable_parameters=sum(whole_size(one) for one in model_parameters if one.requires_grad),
        optimizers=tuple(watcher.optimizers),
        steps=watcher.steps,
        ended=ended,
        peak_gib=unlimited_replay.peak_allocated / GIB,
        reserved_gib=unlimited_replay.peak_reserved / GIB,
        at_peak=at_peak,
        peak_phase=phase,
        peak_step=step,
        host_gib=phantom.host_peak() / GIB,
        cards=tuple(_card_prediction(name, phantom, recorded, tags, needed_size, times[name]) for name in traced.cards),
        timeline_gib=tuple(size / GIB for size in phantom.timeline(TIMELINE_POINTS)),
        phases=tuple(PhaseStart(at=event / max(1, event_count), phase=phase) for event, phase in tags.phases),
        modules=_memory_by_module(shares),
        lines=_memory_by_line(shares),
        blocks=_peak_blocks(shares),
        notes=(*traced.notes, *stated_notes(), *substitutes.notes(), *imports.modeling_notes(model)),
        time_unknown=time_unknown,
        versions={"torch": torch.__version__, **versions()},
        elapsed_s=time.perf_counter() - traced.started_s,
    )


def _class_name(model: torch.nn.Module) -> str:
    """Return the class name of the model, without wrappers for several ranks and without adapters."""
    while isinstance(inner := getattr(model, "module", None), torch.nn.Module):
        model = inner
    base: Any = getattr(model, "get_base_model", None)
    if base is not None:
        return f"{_built_class(base()).__name__} with adapters"
    return _built_class(model).__name__


def _built_class(model: torch.nn.Module) -> type:
    """Return the class with which the model was built, also if fully_shard has replaced it by a derived class."""
    return type(model).__bases__[1] if isinstance(model, FSDPModule) else type(model)


def _card_prediction(
    name: str,
    phantom: Phantom,
    recorded: Sequence[RecordedPhase],
    tags: MemoryTags,
    needed_size: int | None,
    time: StepTime | None,
) -> CardPrediction:
    """Return the prediction for one card.

    recorded: all phases, if the training released memory that another stream may still have used; else empty.
    needed_size: bytes that the training needs on every card; None: they depend on the speed of the card.
    """
    usable_size = round(card_named(name).usable_gib * GIB)
    if needed_size is None:
        set_clocks_of(name, phantom, recorded)
        needed_size = needed_bytes(phantom, phantom.replay(UNLIMITED))
    limited_replay = phantom.replay(usable_size)
    return CardPrediction(
        card=name,
        usable_gib=usable_size / GIB,
        needed_gib=needed_size / GIB,
        reserved_gib=limited_replay.peak_reserved / GIB,
        retries=limited_replay.retries,
        failure=failure_in_replay(limited_replay, tags),
        time=time,
    )


class Share(NamedTuple):
    """A live allocation at the peak: its size in bytes, and to what it belongs. Empty names: to no module, no line."""

    size: int
    module: str
    phase: Phase
    category: str
    line: str


def _shares(allocations: Sequence[LiveAllocation], watcher: TrainingWatcher, lines: LineTracker) -> list[Share]:
    """Return to what each allocation belongs. Optimizers have temporary memory, but no activations."""
    owners, shares = watcher.tags.owners(), []
    for allocation in allocations:
        at, category = allocation.allocated_at, CATEGORIES[allocation.category]
        phase, *_ = watcher.tags.position_at(at)
        if category == UNTAGGED and phase == "optimizer step":
            category = TEMPORARY.key
        module = owners[allocation.owner] or watcher.modules.spans.name_at(at)
        shares.append(Share(allocation.size, module, phase, category, lines.spans.name_at(at)))
    return shares


def _memory_by_module(shares: Sequence[Share]) -> tuple[ModuleMemory, ...]:
    """Return the memory at the peak by module, phase and category, largest first."""
    sizes: Counter[tuple[str, Phase, str]] = Counter()
    for share in shares:
        sizes[share.module, share.phase, share.category] += share.size
    return tuple(
        ModuleMemory(module=module, phase=phase, category=category, size_gib=size / GIB)
        for (module, phase, category), size in sizes.most_common(MAX_ENTRIES)
    )


def _memory_by_line(shares: Sequence[Share]) -> tuple[LineMemory, ...]:
    """Return the memory at the peak by line of the script and category, largest first."""
    sizes: Counter[tuple[str, str]] = Counter()
    for share in shares:
        sizes[share.line, share.category] += share.size
    return tuple(
        LineMemory(line=line, category=category, size_gib=size / GIB)
        for (line, category), size in sizes.most_common(MAX_ENTRIES)
    )


def _peak_blocks(shares: Sequence[Share]) -> tuple[ModuleLineMemory, ...]:
    """Return the memory at the peak by category, module and line, largest first. Modules have * for layer numbers."""
    sizes: Counter[tuple[str, str, str]] = Counter()
    for share in shares:
        sizes[share.category, LAYER_NUMBER.sub("*", share.module), share.line] += share.size
    return tuple(
        ModuleLineMemory(category=category, module=module, line=line, size_gib=size / GIB)
        for (category, module, line), size in sizes.most_common()
    )
