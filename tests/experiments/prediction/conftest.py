"""The tracer's library, compiled once, one tracer for the rows of all tests, and a warm process for scripts."""

from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

from experiments.prediction.predict import TraceError, predict
from experiments.prediction.script import trace
from experiments.results.predictions import Prediction
from tests.experiments.prediction.miniatures import ROWS
from tests.support.processes.phantom_library import cache_with_library
from tests.support.processes.warm_traces import start_warm, warm_traces


@dataclass
class TinyPredictions:
    """The output of predict for the tiny rows: predictions, errors, and the rows in the order of completion."""

    predictions: dict[str, Prediction]
    problems: dict[str, TraceError] = field(default_factory=dict)
    watched: list[tuple[str, bool]] = field(default_factory=list)


@pytest.fixture(scope="session")
def library_cache(tmp_path_factory) -> Path:
    if not (find_spec("torch") and which("c++")):
        pytest.skip("needs torch and a C++ compiler")
    return cache_with_library(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def traced(library_cache) -> TinyPredictions:
    """Predict all tiny rows with one tracer."""
    found = TinyPredictions({})
    predictions = predict(
        list(ROWS.values()),
        library_cache,
        lambda spec, prediction, cached: found.watched.append((spec.row, cached)),
        lambda spec, problem: found.problems.update({spec.row: problem}),
    )
    found.predictions = {prediction.spec.row: prediction for prediction in predictions}
    return found


@pytest.fixture(scope="session")
def warm_socket(library_cache, tmp_path_factory):
    with warm_traces(tmp_path_factory.mktemp("warm")) as socket:
        yield socket


@pytest.fixture
def traces_start_warm(warm_socket, monkeypatch):
    """Traces of scripts start as forks of one warm process, which has imported their libraries."""
    monkeypatch.setattr(trace, "process_group", partial(start_warm, warm_socket))
