"""The time of a step in the output of `testbed predict` and `testbed fit` for scripts and models. Fake: the traces."""

import json
from typing import Any

import pytest

from experiments.cli.app import main
from experiments.cli.output import console
from experiments.prediction import loop_fit, service
from experiments.prediction.script import trace
from experiments.prediction.script.fit import BatchPrediction, ScriptFit, fit_as_data, fit_view
from experiments.prediction.script.record import ScriptPrediction
from experiments.prediction.script.speed import source_notes
from experiments.prediction.script.view import script_predictions_view
from experiments.results.predictions import PeakParts, StepTime
from tests.support.runners.fake_predictions import Predictor, card_prediction
from tests.support.runners.fake_predictions import step_time as row_step_time

MODEL = ("--model", "tiny-llama-1.1b", "--batch", "4", "--accumulate", "2")
SCRIPT = ("--", "python", "x.py")


def step_time(step_s: float, host_s: float = 0.1, unmeasured_share: float = 0.3) -> StepTime:
    """Return the time of a step of which matrix products need 90 % and the optimizer the rest."""
    return StepTime(
        step_s=step_s,
        error_share=0.25,
        gpu_busy_share=1.0,
        gpu_busy_share_error=0.0,
        host_s=host_s,
        link_s=0.0,
        device_s={"matrix products": 0.9 * step_s, "optimizer": 0.1 * step_s},
        measured_on="NVIDIA H100 80GB HBM3",
        unmeasured_share=unmeasured_share,
    )


def prediction(times: dict[str, StepTime | None], need: float = 10.0, reason: str = "") -> ScriptPrediction:
    """Return a prediction for cards of 20 GiB, with the time of a step on each."""
    cards = (card_prediction(name, need, usable_gib=20, time=time) for name, time in times.items())
    parts = PeakParts(params_gib=1.0, grads_gib=1.0, optimizer_gib=2.0, buffers_gib=0.0, activations_gib=6.0)
    sizes: dict[str, Any] = {
        "peak_gib": need,
        "reserved_gib": need,
        "host_gib": 0.0,
        "at_peak": parts,
        "timeline_gib": (1.0,),
    }
    model: dict[str, Any] = {"model": "Net", "parameters": 10, "trainable_parameters": 10, "optimizers": ("Adam",)}
    empty: dict[str, Any] = dict.fromkeys(("phases", "modules", "lines", "blocks", "notes"), ())
    counts: dict[str, Any] = {"rank": 0, "ranks": 1, "steps": 2, "ended": "stopped", "versions": {}, "elapsed_s": 1.0}
    peak: dict[str, Any] = {"peak_phase": "backward", "peak_step": 1, "cards": tuple(cards), "time_unknown": reason}
    return ScriptPrediction(**counts, **sizes, **model, **empty, **peak)


@pytest.fixture
def predicts(monkeypatch):
    """Return a function that sets the prediction of every trace."""

    def predicts(found: ScriptPrediction) -> None:
        monkeypatch.setattr(trace, "trace_script", lambda *_, **__: [found])

    return predicts


def printed(capsys) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_the_prediction_of_a_script_shows_the_time_of_a_step_its_limit_and_its_source(predicts, capsys):
    predicts(prediction({"a100_40gb": step_time(0.5), "a100_80gb": step_time(0.4, unmeasured_share=0.2)}))
    assert main(["predict", *SCRIPT]) == 0
    out = printed(capsys)
    assert "step 0.5 s ±25 % on a100_40gb, limited by GPU: matrix products (host 0.1 s, GPU 0.5 s)" in out
    assert "a100_80gb 0.4 s ±25 % 10.00" in out
    assert "samples/s" not in out
    assert "from operations measured on one NVIDIA H100 80GB HBM3, scaled to other cards; 30% of the GPU's time" in out
    assert "loading data and other work of the program on the CPU are not included" in out


def test_samples_per_second_of_a_model_count_all_micro_steps_and_gpus(predicts, capsys):
    predicts(prediction({"a100_80gb": step_time(0.5, host_s=0.9)}))
    assert main(["predict", *MODEL, "--card", "a100_80gb", "--devices", "2"]) == 0
    assert "step 0.5 s ±25 % on a100_80gb, 32 samples/s, limited by host (host 0.9 s, GPU 0.5 s)" in printed(capsys)
    assert main(["predict", *MODEL, "--card", "a100_80gb", "--json"]) == 0
    (card,) = json.loads(capsys.readouterr().out)["predictions"][0]["cards"]
    assert (card["samples_per_s"], card["limited_by"], card["time"]["step_s"]) == (16.0, "host", 0.5)


def test_an_unknown_time_has_a_reason_and_a_training_that_does_not_fit_shows_no_time(capsys):
    console().print(script_predictions_view([prediction({"a100_80gb": None}, reason="torch.compile was called")]))
    assert "time of a step unknown: torch.compile was called" in printed(capsys)
    console().print(script_predictions_view([prediction({"v100_32gb": None})], "bf16-true"))
    assert "time of a step unknown: v100_32gb has no arithmetic in the data type of the training" in printed(capsys)
    console().print(script_predictions_view([prediction({"a100_80gb": step_time(0.5)}, need=30.0)]))
    out = printed(capsys)
    assert "0.5 s" not in out
    assert "measured on" not in out


def test_the_page_has_the_time_of_a_step_and_its_parts(predicts, tmp_path):
    predicts(prediction({"a100_80gb": step_time(0.5)}))
    page = tmp_path / "page.html"
    assert main(["predict", "--page", str(page), *SCRIPT]) == 0
    text = page.read_text()
    assert "Where the time of a step goes" in text
    assert "0.5 s ±25 %" in text
    assert "30% of the GPU&#39;s time" in text
    predicts(prediction({"a100_80gb": None}, reason="TF32 is on"))
    assert main(["predict", "--page", str(page), *SCRIPT]) == 0
    assert "Where the time of a step goes" not in page.read_text()
    assert "unknown: TF32 is on" in page.read_text()


def test_the_command_fit_names_the_fastest_of_the_traced_batches_that_fit(capsys):
    times = {4: 1.0, 8: 1.6, 9: 1.9, 16: 2.0}
    found = {
        batch: prediction({"a100_80gb": step_time(time)}, need=30.0 if batch == 16 else 10.0)
        for batch, time in times.items()
    }
    fit = ScriptFit(9, 9, {batch: BatchPrediction(one, one.cards[0]) for batch, one in found.items()})
    console().print(fit_view(fit, "--bs"))
    out = printed(capsys)
    assert "fastest traced batch that fits: --bs 8, 5 x --bs per second ±25%" in out
    assert "samples/s" not in out
    console().print(fit_view(fit, "--batch", batches_per_step=2))
    out = printed(capsys)
    assert "fastest traced batch that fits: --batch 8, 10 samples/s ±25%" in out
    assert "8 1.6 s ±25 % 10 10.00" in out
    assert [one["samples_per_s"] for one in fit_as_data(fit, 2)["batches"]] == [
        8.0,
        10.0,
        pytest.approx(9.47, 0.01),
        16,
    ]


def test_the_command_fit_names_the_fastest_of_the_changes_that_fit(monkeypatch, capsys):
    def trace_script(words, cards, say, options, name):
        job = json.loads(words[-1])
        fits = job.get("checkpointing") or job.get("optimizer") == "sgd"
        speed = 2.0 if job.get("checkpointing") else 1.0
        return [prediction({"a100_80gb": step_time(speed)}, need=10.0 if fits else 30.0)]

    monkeypatch.setattr(loop_fit, "trace_script", trace_script)
    assert main(["fit", *MODEL, "--card", "a100_80gb"]) == 0
    assert "fastest change that fits: SGD, 8 samples/s ±25%" in printed(capsys)
    assert main(["fit", *MODEL, "--card", "a100_80gb", "--json"]) == 0
    changes = {one["change"]: one for one in json.loads(capsys.readouterr().out)["changes"]}
    assert changes["activation checkpointing"]["samples_per_s"] == 4.0
    assert changes["SGD"]["time"]["step_s"] == 1.0


def test_an_optimizer_on_the_cpu_limits_a_step_if_it_needs_more_time_than_the_rest(capsys):
    offloaded = step_time(0.5, host_s=2.1).model_copy(update={"cpu_optimizer_s": 2.0})
    console().print(script_predictions_view([prediction({"a100_80gb": offloaded})]))
    assert "limited by optimizer on the CPU (host 0.1 s, GPU 0.5 s, optimizer on the CPU 2 s)" in printed(capsys)
    shorter = offloaded.model_copy(update={"host_s": 0.5, "cpu_optimizer_s": 0.4})
    assert shorter.limited_by == "GPU: matrix products"


@pytest.mark.parametrize("command", ["predict", "fit"])
@pytest.mark.parametrize("is_measured", [False, True])
def test_rows_have_the_note_of_scripts_on_the_times_that_are_shown(monkeypatch, capsys, command, is_measured):
    def needs(spec) -> float:
        return 60.0 if spec.settings.optimizer == "sgd" else 100.0

    time = row_step_time(0.5).model_copy(update={"host_is_measured": is_measured})
    (note,) = source_notes([time])
    assert ("the host that you measured" in note) is is_measured
    monkeypatch.setattr(service, "predict", Predictor(needs, time=time))
    assert main([command, "single_gpu_blip2/xxl", "--card", "a100_80gb"]) == 0
    assert (f"note: {note}" in printed(capsys)) is (command == "fit")
    assert main([command, "single_gpu_blip2/xxl-sgd", "--card", "a100_80gb"]) == 0
    assert (f"note: {note}" in printed(capsys)) is (command == "predict")
