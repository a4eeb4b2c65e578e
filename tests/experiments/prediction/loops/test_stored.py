"""Stored predictions of `testbed predict --model` and `testbed fit --model`: when a question is traced again."""

import json
import os
import sys
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from shutil import which
from typing import Any

import pytest

from experiments.cli.app import main
from experiments.prediction.custom import CustomTraining
from experiments.prediction.loop import program_command, trace_options
from experiments.prediction.script import store as storing
from experiments.prediction.script import trace as tracing
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.record import ScriptPrediction
from experiments.prediction.script.store import PredictionStore
from experiments.prediction.script.trace import ScriptFailed, trace_script
from experiments.prediction.times.host import host_sample_path
from experiments.prediction.times.table import calibrated_table_path
from experiments.results.predictions import PeakParts
from experiments.suites.cards import card_named
from experiments.system import files
from experiments.system.files import CODE_FOLDER
from tests.experiments.prediction.loops.test_generate import CONFIG
from tests.support.runners.fake_predictions import card_prediction

THREE_KERNELS = ["a100_80gb", "h100_94gb", "t4_16gb"]
LOOPS = ["trainer", "plain", "lightning", "litgpt"]
NO_PARTS = PeakParts(**dict.fromkeys(PeakParts.model_fields, 0.0))


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))


def predicted(card: str, notes: tuple[str, ...] = ()) -> ScriptPrediction:
    on_card = card_prediction(card, 1.0, usable_gib=8)
    sizes: dict[str, Any] = dict.fromkeys(("peak_gib", "reserved_gib", "host_gib", "elapsed_s"), 1.0)
    counts: dict[str, Any] = dict.fromkeys(("rank", "peak_step"), 0) | dict.fromkeys(
        ("ranks", "parameters", "steps"), 1
    )
    lists: dict[str, Any] = dict.fromkeys(("optimizers", "timeline_gib", "phases", "modules", "lines", "blocks"), ())
    return ScriptPrediction(
        **sizes,
        **counts,
        **lists,
        trainable_parameters=1,
        model="LlamaForCausalLM",
        sample="a text",
        ended="stopped",
        at_peak=NO_PARTS,
        peak_phase="forward",
        cards=(on_card,),
        notes=notes,
        versions={},
    )


class FakeTraces:
    """Fake of the processes that trace; ``traced`` has the job of each, ``environments`` what it inherits.

    fails_on: a card on which the script fails. ended: how a trace ends.
    """

    def __init__(self):
        self.traced, self.fails_on, self.ended, self.environments = [], "", "stopped", []

    @contextmanager
    def start(self, job, place, shown):
        (card,) = job["cards"]
        self.traced.append((card, job["command"][-1]))
        self.environments.append(place.inherited_environment)

        def wait():
            if card == self.fails_on:
                raise ScriptFailed(1)
            return [predicted(card, (f"trace {len(self.traced)}",)).model_copy(update={"ended": self.ended})]

        yield wait


@pytest.fixture
def traces(monkeypatch):
    fake = FakeTraces()
    monkeypatch.setattr(tracing, "_start_trace", fake.start)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    return fake


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "model" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("command", ["predict", "fit"])
def test_a_second_question_is_not_traced(traces, command, loop, capsys):
    question = [command, "--model", "tiny-llama-1.1b", "--card", "a100_80gb", "--loop", loop]
    assert main(question) == 0
    answer, count = capsys.readouterr().out, len(traces.traced)
    assert count >= 1
    assert main(question) == 0
    assert (capsys.readouterr(), len(traces.traced)) == ((answer, ""), count)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_question_for_fewer_cards_is_not_traced(traces, loop):
    question = ["predict", "--model", "tiny-llama-1.1b", "--loop", loop, "--card"]
    assert main([*question, "a100_80gb,h100_94gb,t4_16gb"]) == 0
    assert main([*question, "h100_94gb"]) == 0
    assert main([*question, "t4_16gb,h100_94gb"]) == 0
    assert sorted(card for card, _ in traces.traced) == THREE_KERNELS


def test_fit_uses_the_predictions_of_predict(traces):
    question = ["--model", "tiny-llama-1.1b", "--card", "a100_80gb", "--batch", "4"]
    assert main(["predict", *question]) == 0
    assert main(["fit", *question]) == 0
    jobs = [job for _, job in traces.traced]
    assert len(jobs) == len(set(jobs)) > 1


def test_a_folder_with_a_configuration_is_the_configuration(traces, config):
    for model in (config, config.parent, config):
        assert main(["predict", "--model", str(model), "--card", "a100_80gb"]) == 0
    assert len(traces.traced) == 1


@pytest.mark.parametrize("loop", ["trainer", "plain", "lightning"])
def test_a_changed_configuration_of_the_same_name_is_traced_again(traces, config, loop):
    question = ["predict", "--model", str(config), "--card", "a100_80gb", "--loop", loop]
    for layers, count in ((2, 1), (3, 2), (2, 2)):
        config.write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
        assert main(question) == 0
        assert len(traces.traced) == count


def key(monkeypatch, training, cards=("a100_80gb",), options=None):
    command = program_command(training)
    found = trace_options(training).store if options is None else PredictionStore(command, options)
    storing._code_sha256.cache_clear()
    return found.path(list(cards)).name


LITGPT = CustomTraining("tiny-llama-1.1b", card="a100_80gb", loop="litgpt")


def _change_model(monkeypatch):
    from experiments.suites.models import models

    model = models()["tiny-llama-1.1b"]
    monkeypatch.setitem(
        models(),
        "tiny-llama-1.1b",
        model.model_copy(update={"architecture": {**model.architecture, "hidden_size": 1024}}),
    )


def _install_package(monkeypatch, tmp_path):
    (tmp_path / "torch-99.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))


def _change_card(monkeypatch):
    faster = card_named("a100_80gb").model_copy(update={"multiprocessors": 7})
    monkeypatch.setattr(storing, "card_named", lambda _: faster)


def _write_times(path):
    path.parent.mkdir(parents=True)
    path.touch()


CHANGES = {
    "the configuration of a model in the catalog": lambda patch, folder: _change_model(patch),
    "a package": _install_package,
    "a property of the card": lambda patch, folder: _change_card(patch),
    "the code": lambda patch, folder: patch.setattr(storing, "CODE", ("provision",)),
    "Python": lambda patch, folder: patch.setattr(sys, "version", "3.99"),
    "a calibrated table of times": lambda patch, folder: _write_times(calibrated_table_path("a100_80gb")),
    "a measured host": lambda patch, folder: _write_times(host_sample_path("a100_80gb")),
    "a variable of the allocator": lambda patch, folder: patch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_everything_that_can_change_a_prediction_changes_its_key(monkeypatch, tmp_path, change):
    before = key(monkeypatch, LITGPT)
    assert key(monkeypatch, LITGPT) == before
    CHANGES[change](monkeypatch, tmp_path)
    assert key(monkeypatch, LITGPT) != before


@pytest.mark.parametrize(
    "file",
    [
        "experiments/prediction/phantom/device.cpp",
        "experiments/suites/catalog/models.yaml",
    ],
)
def test_the_simulated_device_and_the_catalog_are_part_of_the_code(file):
    files = [str(path.relative_to(CODE_FOLDER)) for path in storing._code_files(CODE_FOLDER)]
    assert file in files


def test_options_of_the_training_and_of_the_trace_and_the_group_of_cards_have_keys_of_their_own(monkeypatch):
    trainings = [
        LITGPT,
        replace(LITGPT, batch=2),
        replace(LITGPT, loop="plain"),
        replace(LITGPT, precision="bf16-true"),
    ]
    options = [ScriptOptions(), ScriptOptions(steps=3), ScriptOptions(gpus=2), ScriptOptions(all_ranks=True)]
    keys = [
        *(key(monkeypatch, training) for training in trainings),
        *(key(monkeypatch, LITGPT, options=one) for one in options),
        key(monkeypatch, LITGPT, ("a100_80gb", "h100_94gb")),
        key(monkeypatch, LITGPT, ("h100_94gb",)),
    ]
    assert len(set(keys)) == len(keys)


@pytest.fixture
def trace_three(tmp_path, monkeypatch):
    """Trace a script for three cards with different kernels, with stored predictions; return the notes and messages."""
    (tmp_path / "train.py").touch()
    monkeypatch.chdir(tmp_path)

    def run(smallest=False, cards=THREE_KERNELS):
        command, options, messages = ["python", "train.py"], ScriptOptions(), list[str]()
        options = replace(options, store=PredictionStore(command, options))
        found = trace_script(command, cards, messages.append, options, only_smallest_card=smallest)
        return [(one.cards[0].card, *one.notes) for one in found], messages

    return run


def test_only_cards_without_a_stored_prediction_are_traced_and_the_order_stays(traces, trace_three):
    (middle,), _ = trace_three(cards=["h100_94gb"])
    mixed, messages = trace_three()
    assert [card for card, _ in traces.traced] == ["h100_94gb", *(card for card, _ in mixed if card != "h100_94gb")]
    assert middle in mixed
    assert not any("h100_94gb" in message for message in messages)
    assert trace_three() == (mixed, [])


def test_the_store_keeps_a_limited_number_of_predictions(traces, trace_three, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "MAX_CACHED_FILES", 2)
    trace_three()
    assert len(traces.traced) == 3
    assert len([*(tmp_path / "cache").rglob("*.json")]) == 2


def test_a_failed_trace_is_not_stored(traces, trace_three):
    traces.fails_on = "t4_16gb"
    with pytest.raises(ScriptFailed):
        trace_three(cards=["t4_16gb"])
    traces.fails_on = ""
    trace_three(cards=["t4_16gb"])
    assert len(traces.traced) == 2


def test_a_trace_that_ended_at_its_time_limit_is_not_stored(traces, trace_three):
    traces.ended = "time limit"
    trace_three(cards=["t4_16gb"])
    trace_three(cards=["t4_16gb"])
    assert len(traces.traced) == 2


def test_an_answer_is_not_lost_if_the_cache_cannot_be_written(traces, trace_three, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / storing.FOLDER).touch()
    assert trace_three(cards=["t4_16gb"])[0] == [("t4_16gb", "trace 1")]


def test_a_launcher_of_this_process_is_hidden_from_the_program(traces, trace_three, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "4")
    trace_three(cards=["t4_16gb"])
    (environment,) = traces.environments
    assert "PATH" in environment
    assert not {"WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "SLURM_NTASKS"} & {*environment}


@pytest.mark.parametrize("content", ["[{}]", "[]", ""])
def test_a_damaged_file_is_traced_again(traces, trace_three, tmp_path, content):
    trace_three(cards=["t4_16gb"])
    (stored,) = (tmp_path / "cache").rglob("*.json")
    stored.write_text(content)
    trace_three(cards=["t4_16gb"])
    trace_three(cards=["t4_16gb"])
    assert len(traces.traced) == 2


@pytest.mark.skipif(not (find_spec("torch") and which("c++")), reason="needs torch and a C++ compiler")
def test_a_stored_prediction_equals_the_traced_one(library_cache, monkeypatch, traces_start_warm, config, capfd):
    monkeypatch.setenv("TESTBED_CACHE", str(library_cache))
    question = ["predict", "--model", str(config), "--card", "a100_80gb", "--loop", "plain", "--seq", "32", "--json"]

    def ask():
        assert main(question) == 0
        return json.loads(capfd.readouterr().out)

    traced = ask()
    with monkeypatch.context() as patch:
        patch.setattr(tracing, "process_group", lambda *_, **__: pytest.fail("traced"))
        assert ask() == traced
    config.write_text(json.dumps(CONFIG | {"intermediate_size": 4096}))
    assert ask()["predictions"][0]["peak_gib"] > traced["predictions"][0]["peak_gib"]
