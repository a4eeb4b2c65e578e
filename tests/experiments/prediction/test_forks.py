"""How many rows the tracer traces at a time. Fake: the forks, and the memory that they need."""

import itertools
import os
from types import SimpleNamespace

import psutil
import pytest

from experiments.prediction.tracer import run_in_forks

GIB = 1024**3


@pytest.fixture
def forks(monkeypatch):
    """Return a function that runs eight jobs, each of which needs 1 GiB; it returns how many ran at each end of one."""

    def run(available_gib: float, workers: int = 4) -> list[int]:
        running, numbers, seen = list[int](), itertools.count(1), list[int]()

        def fork() -> int:
            running.append(next(numbers))
            return running[-1]

        def wait3(_: int) -> tuple[int, int, SimpleNamespace]:
            seen.append(len(running))
            return running.pop(0), 0, SimpleNamespace(ru_maxrss=1024**2)

        memory = SimpleNamespace(total=64 * GIB, available=available_gib * GIB)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        monkeypatch.setattr(os, "fork", fork)
        monkeypatch.setattr(os, "wait3", wait3)
        assert list(run_in_forks([{}] * 8, lambda job: None, workers)) == list(range(8))
        return seen

    return run


def test_as_many_rows_as_workers_are_traced_at_a_time(forks):
    assert max(forks(60)) == 4


def test_the_first_row_is_traced_alone_and_then_as_many_as_fit_into_memory(forks):
    assert forks(3.9)[:3] == [1, 3, 3]


def test_one_row_is_traced_at_a_time_if_memory_does_not_suffice_for_two(forks):
    assert set(forks(0.5)) == {1}
