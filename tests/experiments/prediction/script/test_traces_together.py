"""Traces of a script for cards with different kernels, which run side by side."""

import os
import resource
import subprocess
from contextlib import contextmanager
from types import SimpleNamespace

import psutil
import pytest

from experiments.prediction.script import trace as tracing
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.record import ScriptPrediction
from experiments.prediction.script.trace import ScriptFailed, trace_script
from provision.hardware import host_memory
from tests.experiments.prediction.script.test_trace import LOOP

THREE_KERNELS = ["a100_80gb", "h100_94gb", "t4_16gb"]


def test_traces_side_by_side_predict_the_same_as_traces_alone(trace, monkeypatch, capfd):
    def predictions() -> list[ScriptPrediction]:
        return [one.model_copy(update={"elapsed_s": 0.0}) for one in trace(LOOP, cards=THREE_KERNELS)]

    monkeypatch.setattr(tracing, "_traces_at_a_time", lambda: 1)
    alone = predictions()
    assert capfd.readouterr().err.count("step 0") == 3
    monkeypatch.setattr(tracing, "_traces_at_a_time", lambda: 2)
    assert predictions() == alone
    assert capfd.readouterr().err.count("step 0") == 1


class FakeTraces:
    """Traces of a script that fails on a card, or if it starts beside another trace. Fake: the processes."""

    def __init__(self, fails_beside_others=False, fails_on=""):
        self._fails_beside_others, self._fails_on = fails_beside_others, fails_on
        self._running = 0
        self.events: list[str] = []

    @contextmanager
    def start(self, job, place, shown):
        (card,) = job["cards"]
        self.events.append(f"start {card}")
        self._running += 1
        fails = card == self._fails_on or (self._fails_beside_others and self._running > 1)

        def wait():
            self.events.append(f"wait {card}")
            if fails:
                raise ScriptFailed(1)
            return [ScriptPrediction.model_construct(cards=(), ranks=1, rank=job["rank"], notes=(card,))]

        try:
            yield wait
        finally:
            self._running -= 1


@pytest.fixture
def fake_traces(monkeypatch, tmp_path):
    """Return a function that traces for three cards with different kernels on two CPUs; it returns the fake traces."""
    (tmp_path / "train.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracing, "smallest_card", lambda predictions: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})

    def run(available_share=100.0, limit_share=None, **options):
        fake, messages = FakeTraces(**options), list[str]()
        largest_yet = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        memory = SimpleNamespace(available=available_share * largest_yet, total=200 * largest_yet)
        if limit_share:
            (tmp_path / "cgroup").write_text("0::/\n")
            (tmp_path / "mountinfo").write_text(f"30 23 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw\n")
            (tmp_path / "memory.max").write_text(str(int(limit_share * largest_yet)))
            monkeypatch.setattr(host_memory, "SELF", tmp_path)
        monkeypatch.setattr(tracing, "_start_trace", fake.start)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        found = trace_script(["python", "train.py"], THREE_KERNELS, messages.append, ScriptOptions())
        return fake.events, sorted(one.notes[0] for one in found), messages

    subprocess.run(["true"], check=True)
    return run


def test_the_first_kind_of_kernels_is_traced_alone_and_the_others_side_by_side(fake_traces):
    events, found, messages = fake_traces()
    first, second, third = (event.split()[1] for event in events if event.startswith("start"))
    assert events == [f"start {first}", f"wait {first}"] + [
        f"{event} {card}" for event in ("start", "wait") for card in (second, third)
    ]
    assert found == THREE_KERNELS
    assert "(1 of 3)" in messages[0]
    assert f"for {second}; {third} (2 to 3 of 3, at most " in messages[1]
    assert len(messages) == 2


def test_traces_run_one_after_the_other_if_memory_does_not_suffice_for_two(fake_traces):
    events, found, messages = fake_traces(available_share=1.9)
    assert [event.split()[0] for event in events] == ["start", "wait"] * 3
    assert found == THREE_KERNELS
    assert len(messages) == 3


@pytest.mark.parametrize(("limit_share", "at_a_time"), [(1.9, 1), (2.1, 2)])
def test_the_memory_limit_of_a_container_counts(fake_traces, limit_share, at_a_time):
    events, _, _ = fake_traces(limit_share=limit_share)
    assert [event.split()[0] for event in events[2:4]] == ["start", "start" if at_a_time == 2 else "wait"]


def test_traces_that_disturb_each_other_run_once_more_one_after_the_other(fake_traces):
    events, found, messages = fake_traces(fails_beside_others=True)
    assert [event.split()[0] for event in events[-4:]] == ["start", "wait"] * 2
    assert found == THREE_KERNELS
    assert messages[-1] == "a trace failed while others were running; tracing all of them again, one after the other"


def test_a_card_on_which_the_script_fails_is_left_out_with_a_line(fake_traces):
    first = fake_traces()[0][0].removeprefix("start ")
    failing = next(card for card in THREE_KERNELS if card != first)
    _, found, messages = fake_traces(fails_on=failing)
    assert found == [card for card in THREE_KERNELS if card != failing]
    assert messages[-1].startswith(f"not predicted for {failing}: the script itself failed with exit code 1")
    with pytest.raises(ScriptFailed):
        fake_traces(fails_on=first)
