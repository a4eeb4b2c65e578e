"""Programs with several streams that run on the phantom device; see probes.py."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

MIB = 1024**2
UNLIMITED = 2**62


def block(size: int) -> Any:
    """Return a tensor with this number of bytes on the device."""
    import torch

    return torch.empty(size, dtype=torch.uint8, device="cuda")


def pools(phantom: Any) -> Any:
    """Return the bytes that are reserved after a block was freed and allocated again, on one stream and on two."""
    import torch

    reserved = []
    for stream in (None, torch.cuda.Stream()):
        phantom.empty_cache()
        held = block(512)
        del held
        with torch.cuda.stream(stream):
            held = block(512)
        reserved.append(phantom.stats()[1])
        del held
    return [*reserved, torch.cuda.current_stream().stream_id]


def replays_with_clocks(phantom: Any) -> Any:
    """Free a block, start ten operations and allocate a block of its size. Return replays with several clocks.

    The freed block was used on another stream, on one that was idle since the clocks began, on one that waits for the
    first, or only on its own.
    """
    import torch

    counter, replays = torch.zeros(1, device="cuda"), {}
    other, idle, waiting = (torch.cuda.Stream() for _ in range(3))
    with torch.cuda.stream(idle):
        counter.add_(1)
    streams = {"other": other, "idle": idle, "waiting": waiting, "own": torch.cuda.current_stream()}
    for use, stream in streams.items():
        phantom.empty_cache()
        start = phantom.operation_count()
        held = block(20 * MIB)
        held.record_stream(stream)
        with torch.cuda.stream(other):
            counter.add_(1)
        waiting.wait_stream(other)
        del held
        for _ in range(10):
            counter.add_(1)
        held = block(20 * MIB)
        end = phantom.operation_count()
        clocks = {
            "no clocks": [],
            "GPU behind": [(start, 0.0, 0.0), (end, 1.0, 30.0)],
            "GPU ahead": [(start, 0.0, 0.0), (end, 30.0, 1.0)],
            "host has waited": [(start, 0.0, 0.0), (end, 1.0, 30.0), (end, 30.0, 30.0), (end + 1, 31.0, 31.0)],
        }
        for name, points in clocks.items():
            phantom.set_clocks(points)
            unlimited, limited = phantom.replay(UNLIMITED), phantom.replay(30 * MIB)
            replays[f"{use} stream, {name}"] = [
                unlimited.peak_reserved // MIB,
                unlimited.peak_allocated // MIB,
                limited.failed_event,
                limited.retries,
            ]
        phantom.set_clocks([])
        del held
    return replays


def gradients_used_on_another_stream(phantom: Any) -> Any:
    """Return whether blocks were released in use after a backward pass on one stream, and after one on two."""
    import torch

    weight = torch.ones(4, device="cuda", requires_grad=True)
    in_use = []
    for stream in (None, torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            doubled = weight * 2
        (doubled * 3).sum().backward()
        in_use.append(phantom.released_in_use())
    return in_use


def waits_for_collectives(phantom: Any) -> Any:
    """Return whether a block was released in use after a wait for its collective operation, and for its future."""
    import torch

    from experiments.prediction.phantom.ranks import CompletedWork

    in_use = []
    for future in (False, True):
        with torch.cuda.stream(torch.cuda.Stream()):
            gathered = block(512)
        work = CompletedWork([gathered])
        (work.get_future() if future else work).wait()
        del work, gathered
        in_use.append(phantom.released_in_use())
    return in_use


def waits_for_events(phantom: Any) -> Any:
    """Return how many operations the host had started since the event, and whether it waited for those before it."""
    import torch

    counter, waits = torch.zeros(1, device="cuda"), []
    for wait in (torch.cuda.Event.synchronize, torch.cuda.Event.query):
        event = torch.cuda.Event()
        event.record()
        recorded_at = phantom.operation_count()
        counter.add_(1)
        wait(event)
        at, waited_for = phantom.waits()[-1]
        waits.append([at - recorded_at, waited_for == recorded_at])
    return waits


def both_families(phantom: Any) -> Any:
    """Return, by families of an event and of streams, whether each of their methods waits for the right operation.

    The families are torch.cuda.Event and torch.cuda.Stream, and torch.Event and torch.Stream.
    """
    import torch

    counter, right = torch.zeros(1, device="cuda"), {}
    events: dict[str, Callable[..., Any]] = {"cuda": torch.cuda.Event, "torch": partial(torch.Event, "cuda")}
    streams: dict[str, Callable[..., Any]] = {"cuda": torch.cuda.Stream, "torch": partial(torch.Stream, "cuda")}
    current = {"cuda": torch.cuda.current_stream, "torch": torch.accelerator.current_stream}

    def waits_for(operation: int, wait: Callable[[Any], Any], family: str) -> bool:
        counter.add_(1)
        waiting = streams[family]()
        waited, waits = wait(waiting), phantom.waits()
        by_host = bool(waits) and waits[-1] == (phantom.operation_count(), operation)
        return waited is not False and (by_host or phantom.last_operation_on(waiting.stream_id) == operation)

    for event_family, stream_family in itertools.product(events, streams):
        event = events[event_family](enable_timing=True)
        other = streams["torch" if stream_family == "cuda" else "cuda"]()
        with torch.cuda.stream(other):
            counter.add_(1)
        at = phantom.operation_count()
        event.record(other)
        checks = {
            "wait_event": lambda stream, event=event: stream.wait_event(event),
            "wait": lambda stream, event=event: event.wait(stream),
            "wait_stream": lambda stream, other=other: stream.wait_stream(other),
            "synchronize": lambda _, event=event: event.synchronize(),
            "query": lambda _, event=event: event.query(),
            "synchronize a stream": lambda _, other=other: other.synchronize(),
            "query a stream": lambda _, other=other: other.query(),
        }
        found = {name: waits_for(at, wait, stream_family) for name, wait in checks.items()}
        later = events[event_family](enable_timing=True)
        later.record(other)
        # A torch.Stream accepts only an event of its own family here, also on a GPU.
        recorded = other.record_event(later if isinstance(other, torch.cuda.Stream) else None)
        found["record_event"] = waits_for(at, recorded.wait, stream_family)
        found["elapsed_time"] = event.elapsed_time(later) > 0
        counter.add_(1)
        now = current[stream_family]()
        found["current stream"] = waits_for(phantom.operation_count(), now.record_event().wait, stream_family)
        found["equal"] = now == torch.cuda.default_stream() and hash(now) == hash(torch.cuda.default_stream())
        right[f"{event_family} event, {stream_family} stream"] = found
    return right


PROBES = (
    both_families,
    pools,
    replays_with_clocks,
    gradients_used_on_another_stream,
    waits_for_collectives,
    waits_for_events,
)
