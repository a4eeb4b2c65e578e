"""The tracer's library, compiled once, and one tracer for the rows of all tests."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

from experiments.prediction.phantom.library import compiled_library
from experiments.prediction.predict import TraceError, predict
from experiments.results.predictions import Prediction
from experiments.system.files import cache_folder
from tests.experiments.prediction.miniatures import ROWS


@dataclass
class TinyPredictions:
    """The output of predict for the tiny rows: predictions, errors, and the rows in the order of completion."""

    predictions: dict[str, Prediction]
    problems: dict[str, TraceError] = field(default_factory=dict)
    watched: list[tuple[str, bool]] = field(default_factory=list)


def cache_with_library(folder: Path) -> Path:
    """A cache without predictions that has the compiled library."""
    library = compiled_library(cache_folder(), Path(find_spec("torch").origin).parent)
    (folder / library.name).symlink_to(library)
    return folder


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
