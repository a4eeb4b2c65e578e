"""Record the allocations of training programs on a GPU, and replay them through the model of the allocator.

    python -m tests.benchmarks.prediction.foreign.histories record FOLDER FILE [CASE ...]      on a GPU
    python -m tests.benchmarks.prediction.foreign.histories replay                             without a GPU

FOLDER: as for `python -m tests.benchmarks.prediction.foreign`. ``record`` runs the cases, eight at a time, until their
third optimizer step. ``replay`` writes prediction_h200/histories.md. A line of the compressed FILE has the case, its
measured memory, and ``events``: N allocates N bytes, [N, S] does so on stream S, -I-1 frees the allocation of event I,
and null frees the cache.
"""

import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.prediction.phantom.library import Phantom, load
from experiments.suites.attention_kernels import kernel_properties
from experiments.suites.cards import card_named
from experiments.system.files import GIB, cache_folder
from tests.benchmarks.forks import FORK
from tests.benchmarks.prediction.foreign.__main__ import OFFLINE, REPOSITORY, commands

EVIDENCE = REPOSITORY / "experiments" / "evidence" / "prediction_h200"
AT_ONCE = 8
LIMIT_S = 150
STARTED_IN_EACH_PROCESS = """
import torch
from tests.benchmarks.prediction import unchanged_program
from tests.benchmarks.prediction.foreign.histories import recording
torch.cuda._lazy_call(lambda: torch.cuda.memory._record_memory_history(context=None, max_entries=3_000_000))
unchanged_program.Measurement = recording(unchanged_program.Measurement)
unchanged_program.watch()
"""


def recording(measurement: type[Any]) -> type[Any]:
    """Return a measurement that at the third step writes the history of the allocator to $RECORDED and ends."""

    class Recording(measurement):  # type: ignore[misc]
        def begin_step(self, optimizers: int) -> None:
            import torch

            super().begin_step(optimizers)
            trace = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
            found = {name: self._found[name] for name in ("peak_gib", "reserved_gib")}
            Path(os.environ["RECORDED"]).write_text(json.dumps({**found, "events": list(numbered_events(trace))}))
            os._exit(0)

    return Recording


def numbered_events(trace: list[dict[str, Any]]) -> Iterator[int | list[int] | None]:
    """Yield the events of a line from PyTorch's history of the allocator."""
    numbers: dict[int, int] = {}
    count, freeing = 0, False
    for event in trace:
        kind, address = event["action"], event["addr"]
        if kind == "alloc":
            numbers[address] = count
            yield [event["size"], event["stream"]] if event["stream"] else event["size"]
        elif kind == "free_completed" and address in numbers:
            yield -numbers.pop(address) - 1
        elif kind == "segment_free" and not freeing:
            yield None
        else:
            continue
        freeing, count = kind == "segment_free", count + 1


def record(folder: Path, file: Path, wanted: list[str]) -> None:
    """Write one line for each case that reaches its third step; print the end of the log of the others."""
    with tempfile.TemporaryDirectory() as temporary, gzip.open(file, "wt") as out:
        (Path(temporary) / "sitecustomize.py").write_text(STARTED_IN_EACH_PROCESS)
        path = os.pathsep.join([temporary, str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        cases = list(commands(wanted))
        for start in range(0, len(cases), AT_ONCE):
            processes = []
            for name, command in cases[start : start + AT_ONCE]:
                found = Path(temporary) / f"{name}.json"
                words = [sys.executable, *command[1:]] if command[0] == "python" else command
                environment = os.environ | OFFLINE | {"PYTHONPATH": path, "RECORDED": str(found)}
                with found.with_suffix(".log").open("w") as log:
                    process = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log)
                processes.append((name, process, found))
            for name, process, found in processes:
                _wait(process)
                if found.exists():
                    line = {"case": name, **json.loads(found.read_text())}
                    out.write(json.dumps(line, separators=(",", ":")) + "\n")
                else:
                    print(name, found.with_suffix(".log").read_text(errors="replace")[-1500:])


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()


def histories() -> Iterator[dict[str, Any]]:
    """Yield the recorded lines of the evidence."""
    with gzip.open(EVIDENCE / "histories.jsonl.gz", "rt") as lines:
        yield from map(json.loads, lines)


def replay(phantom: Phantom, events: list[Any]) -> tuple[int, int]:
    """Return the peaks of allocated and of reserved bytes. The process must not have used the GPU before."""
    import torch

    held: dict[int, Any] = {}
    for number, event in enumerate(events):
        if event is None:
            phantom.empty_cache()
        elif isinstance(event, int) and event < 0:
            del held[-event - 1]
        else:
            size, stream = event if isinstance(event, list) else (event, 0)
            phantom.set_stream(stream)
            held[number] = torch.empty(size, dtype=torch.uint8, device="cuda")
    return phantom.stats()[2:4]


def _replay_and_send(phantom: Phantom, events: list[Any], end: Any) -> None:
    end.send(replay(phantom, events))


def _replay_all() -> None:
    phantom, card = load(cache_folder()), card_named("h200_141gb")
    phantom.install(kernel_properties(card))
    from experiments.prediction.phantom.cuda import replace_cuda

    replace_cuda(phantom, card)
    rows = ["| program | events | reserved measured | replayed | error |", "|---|---|---|---|---|"]
    for line in histories():
        receiving, sending = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_replay_and_send, args=(phantom, line["events"], sending))
        process.start()
        sending.close()
        reserved_gib = receiving.recv()[1] / GIB
        process.join()
        measured_gib = line["reserved_gib"]
        row = (
            len(line["events"]),
            f"{measured_gib:.3f}",
            f"{reserved_gib:.3f}",
            f"{reserved_gib / measured_gib - 1:+.2%}",
        )
        rows.append(f"| {line['case']} | {' | '.join(map(str, row))} |")
    (EVIDENCE / "histories.md").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "record":
        record(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        _replay_all()
