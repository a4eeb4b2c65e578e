"""Predictions are cached, are traced in parallel, and continue when single rows fail."""

import json
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import psutil
import pytest

from experiments.errors import InputError
from experiments.prediction import predict as predicting
from experiments.prediction.predict import predict
from experiments.prediction.times.host import host_sample_path
from experiments.prediction.times.table import calibrated_table_path
from experiments.results.predictions import Prediction
from experiments.suites.cards import card_named
from experiments.suites.row_spec import RowSpec
from experiments.system import files
from tests.experiments.prediction.miniatures import ROWS
from tests.support.runners.fake_predictions import prediction
from tests.support.training.tiny_rows import spec

WAIT_LIMIT_S, SOON_S = 120, 5
A, B = spec(row="a"), spec(row="b", batch_size=3)
FIRST, SLOW, ALSO_SLOW = spec(row="first", seed=3), *(spec(row="slow", train_samples=n) for n in (20000, 20002))


class Tracer:
    """Fake tracer. asked: the rows of each call."""

    def __init__(self):
        self.asked = []

    def __call__(self, missing, cache, workers, rank):
        self.asked.append([spec.row for spec in missing.values()])
        for key, row in missing.items():
            yield key, prediction(row, rank=rank)


@pytest.fixture
def tracer(monkeypatch):
    stand_in = Tracer()
    monkeypatch.setattr(predicting, "_trace_rows", stand_in)
    return stand_in


def rows(predictions: list[Prediction]) -> list[str]:
    return [found.spec.row for found in predictions]


def test_a_cached_prediction_is_not_traced_again(tracer, tmp_path):
    first = predict([A, B], tmp_path)
    assert predict([B, A], tmp_path) == first[::-1]
    assert tracer.asked == [["a", "b"], []]


def test_a_row_that_is_requested_twice_is_traced_once_and_reported_twice(tracer, tmp_path):
    assert rows(predict([A, B, A], tmp_path)) == ["a", "b", "a"]
    assert tracer.asked == [["a", "b"]]


def test_each_rank_of_a_row_is_traced_and_cached_on_its_own(tracer, tmp_path):
    found = [predict([A], tmp_path, rank=rank) for rank in (0, 1, 1)]
    assert [one.rank for (one,) in found] == [0, 1, 1]
    assert tracer.asked == [["a"], ["a"], []]


def test_a_cached_row_with_another_batch_size_is_traced_again(tracer, tmp_path):
    predict([A], tmp_path)
    predict([A, spec(row="a", batch_size=3)], tmp_path)
    assert tracer.asked == [["a"], ["a"]]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("_prediction_code_sha256", lambda: "another tracer"),
        ("code_sha256", lambda: "another worker"),
        ("_library_versions", lambda: ("torch 99",)),
        ("card_named", lambda name: card_named(name).model_copy(update={"memory_gib": 1.0})),
    ],
)
def test_a_cached_prediction_for_other_code_libraries_or_another_card_is_not_used(
    tracer, tmp_path, monkeypatch, part, value
):
    predict([A], tmp_path)
    monkeypatch.setattr(predicting, part, value)
    predict([A], tmp_path)
    assert tracer.asked == [["a"], ["a"]]


def test_a_host_or_card_that_is_measured_during_the_process_is_noticed(tracer, tmp_path, monkeypatch):
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path))
    predict([A], tmp_path)
    for measured, content in (
        (host_sample_path("a100_80gb"), "first"),
        (host_sample_path("a100_80gb"), "second"),
        (calibrated_table_path("a100_80gb"), "first"),
    ):
        measured.parent.mkdir(parents=True, exist_ok=True)
        measured.write_text(content)
        for _ in range(2):
            predict([A], tmp_path)
    assert tracer.asked == [["a"], ["a"], [], ["a"], [], ["a"], []]
    host_sample_path("a100_80gb").rename(host_sample_path("h100_80gb"))
    predict([A], tmp_path)
    assert tracer.asked[-1] == ["a"]


def test_a_library_that_is_installed_during_the_process_is_noticed(tracer, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    predict([A], tmp_path)
    package = tmp_path / "litgpt-99.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: litgpt\nVersion: 99.0\n")
    predict([A], tmp_path)
    assert tracer.asked == [["a"], ["a"]]


@pytest.mark.parametrize("text", ["", "{", '{"prediction_version": 1}', '{"error": "no"}'])
def test_an_unreadable_cached_prediction_is_traced_again(tracer, tmp_path, text):
    first = predict([A], tmp_path)
    (file,) = (tmp_path / "predictions").iterdir()
    file.write_text(text)
    assert predict([A], tmp_path) == first
    assert tracer.asked == [["a"], ["a"]]
    assert Prediction.model_validate_json(file.read_bytes()) == first[0]


def test_the_cache_keeps_a_limited_number_of_predictions(tracer, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_CACHED_FILES", 2)
    for batch_size in range(1, 5):
        predict([spec(row="a", batch_size=batch_size)], tmp_path)
    assert len([*(tmp_path / "predictions").iterdir()]) == 2


def test_every_row_is_reported_once_with_whether_it_was_cached(tracer, tmp_path):
    reported = []
    predict([A], tmp_path)
    predict([A, B, B, A], tmp_path, lambda spec, found, cached: reported.append((spec.row, found.spec.row, cached)))
    assert reported == [("a", "a", True), ("b", "b", False)]


def test_a_missing_compiler_is_reported_in_one_line_and_nothing_is_traced(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError) as caught:
        predict([A], tmp_path)
    says = "prediction compiles a small library at first use and finds no C++ compiler (package g++)"
    assert str(caught.value) == says


@pytest.mark.xdist_group("tracer")
def test_a_row_that_cannot_be_traced_has_a_reason_and_the_others_are_predicted(traced):
    assert list(traced.problems) == ["refused"]
    problem = traced.problems["refused"]
    assert isinstance(problem, InputError)
    assert str(problem).startswith("lab/refused on a100_80gb: warmup_steps = 0: ")
    assert "\n" not in str(problem)
    others = [name for name in ROWS if name != "refused"]
    assert list(traced.predictions) == others
    assert sorted(traced.watched) == sorted((name, False) for name in others)


def descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def traced_rows() -> list[psutil.Process]:
    """Rows that are being traced: children of the tracer, which is a child of this process."""
    return [fork for tracer in psutil.Process().children() for fork in tracer.children()]


def wait_until(condition) -> None:
    end = time.monotonic() + WAIT_LIMIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.xdist_group("tracer")
def test_if_the_tracer_is_killed_its_rows_are_reported_as_errors(library_cache):
    caught, before = [], descendants()

    def predict_slow_rows():
        with pytest.raises(RuntimeError) as error:
            predict([SLOW, ALSO_SLOW], library_cache, workers=2)
        caught.append(str(error.value))

    asking = Thread(target=predict_slow_rows)
    asking.start()
    wait_until(traced_rows)
    started = traced_rows()
    (tracer,) = {fork.parent() for fork in started}
    tracer.kill()
    asking.join(WAIT_LIMIT_S)
    psutil.wait_procs(started, SOON_S)
    assert [line.partition(":")[0] for line in caught] == ["the tracer failed"]
    assert set(descendants()) <= set(before)
    assert not any(fork.is_running() for fork in started)


@pytest.mark.xdist_group("tracer")
def test_an_interrupted_prediction_leaves_no_tracer_running(library_cache):
    before, seen = descendants(), []

    def interrupt(*_):
        seen.extend(descendants())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict([FIRST, SLOW], library_cache, interrupt, workers=2)
    assert len(seen) > len(before)
    _, alive = psutil.wait_procs(seen, SOON_S)
    assert set(alive) <= set(before)


def test_cards_with_the_same_kernels_share_one_trace(monkeypatch, tmp_path):
    jobs = []

    @contextmanager
    def fake_tracer(cache, workers, given, log):
        jobs.extend(given)
        for job in given:
            row = RowSpec.model_validate_json(Path(job["spec"]).read_bytes())
            found = [prediction(row.model_copy(update={"card": card})) for card in job["cards"]]
            Path(job["out"]).write_text(json.dumps([one.model_dump(mode="json") for one in found]))
        yield SimpleNamespace(stdout=[f"{number}\n" for number in range(len(given))], wait=lambda: 0)

    monkeypatch.setattr(predicting, "_run_tracer", fake_tracer)
    asked = [A.model_copy(update={"card": name}) for name in ("h100_94gb", "a30_24gb", "a100_80gb", "h200_141gb")]
    assert [one.spec.card for one in predict(asked, tmp_path)] == [one.card for one in asked]
    assert [job["cards"] for job in jobs] == [["a100_80gb", "a30_24gb"], ["h100_94gb", "h200_141gb"]]
    jobs.clear()
    predict([asked[2], asked[0]], tmp_path)
    assert jobs == [], "the traced card of a group is predicted as alone"
    predict([asked[1]], tmp_path)
    assert [job["cards"] for job in jobs] == [["a30_24gb"]], "alone it has fewer multiprocessors"
