"""`testbed predict -- COMMAND`: exit codes and messages; the trace itself is in tests/experiments/prediction/script."""

import json
from typing import Any

import pytest

from experiments.cli.app import main
from experiments.cli.output import console
from experiments.prediction.script import trace
from experiments.prediction.script.record import LineMemory, ModuleLineMemory, ScriptPrediction
from experiments.prediction.script.view import script_predictions_view
from experiments.results.predictions import PeakParts
from experiments.suites.cards import parse_card_list
from tests.support.runners.fake_predictions import card_prediction


def prediction(needed_gib: float) -> ScriptPrediction:
    at_peak = PeakParts(params_gib=1.0, grads_gib=1.0, optimizer_gib=2.0, buffers_gib=0.0, activations_gib=6.0)
    return ScriptPrediction(
        rank=0,
        ranks=1,
        model="Net",
        parameters=10,
        trainable_parameters=10,
        optimizers=("Adam",),
        steps=2,
        ended="stopped",
        peak_gib=10.0,
        reserved_gib=needed_gib,
        at_peak=at_peak,
        peak_phase="backward",
        peak_step=1,
        host_gib=0.0,
        cards=(card_prediction("v100_32gb", needed_gib, usable_gib=31.19), card_prediction("a100_80gb", needed_gib)),
        timeline_gib=(1.0, 10.0, 2.0),
        phases=(),
        modules=(),
        lines=(),
        blocks=(
            ModuleLineMemory(category="activations", module="layers.*.mlp", line="train.py:7", size_gib=6.0),
            ModuleLineMemory(category="optimizer", module="", line="train.py:8", size_gib=2.0),
            ModuleLineMemory(category="params", module="", line="train.py:3", size_gib=1.0),
            ModuleLineMemory(category="grads", module="", line="train.py:9", size_gib=1.0),
        ),
        notes=("torch.compile was called",),
        versions={},
        elapsed_s=1.0,
    )


def test_memory_is_not_attributed_to_frames_of_the_interpreter(capsys):
    inner = LineMemory(line="<frozen runpy>:88", category="params", size_gib=1.0)
    own = LineMemory(line="train.py:3", category="params", size_gib=1.0)
    console().print(script_predictions_view([prediction(40.0).model_copy(update={"lines": (inner,)})]))
    assert "line of the script" not in capsys.readouterr().out
    console().print(script_predictions_view([prediction(40.0).model_copy(update={"lines": (inner, own)})]))
    out = capsys.readouterr().out
    assert "train.py:3" in out
    assert "runpy" not in out


@pytest.fixture
def requested_traces(monkeypatch):
    """Record the requested traces; every prediction needs 40 GiB."""
    asked: list[Any] = []

    def trace_script(words, cards, say, options, only_smallest_card):
        asked.append((words, cards, options, only_smallest_card))
        return [prediction(40.0)]

    monkeypatch.setattr(trace, "trace_script", trace_script)
    return asked


def test_everything_after_two_dashes_is_the_command_of_the_script(requested_traces, capsys):
    assert (
        main(["predict", "--card", "a100_80gb,v100_32gb", "--steps", "3", "--", "python", "x.py", "--card", "y"]) == 0
    )
    ((words, cards, options, _),) = requested_traces
    assert (words, cards, options.steps) == (["python", "x.py", "--card", "y"], ["a100_80gb", "v100_32gb"], 3)
    out = capsys.readouterr().out
    assert "smallest card that fits: a100_80gb" in out
    assert "note: torch.compile was called" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["v100_32gb", "10.00", "40.00", "31.19", "-8.81", "oom"] in [line[:6] for line in lines]
    assert ["a100_80gb", "10.00", "40.00", "78.60", "+38.60", "fits"] in lines


def test_the_smallest_card_is_searched_among_the_listed_cards_and_among_all_without_a_list(requested_traces):
    for cards in ("24GiB,h200_141gb,smallest", "smallest", "24GiB,all", "a100_80gb"):
        assert main(["predict", "--card", cards, "--", "python", "x.py"]) == 0
    listed, every, with_size, one = ((cards, smallest) for _, cards, _, smallest in requested_traces)
    assert listed == (["24GiB", "h200_141gb"], True)
    assert every == (parse_card_list("all"), True)
    assert with_size == (["24GiB", *parse_card_list("all")], False)
    assert one == (["a100_80gb"], False)


def test_the_line_of_the_peak_names_the_card_also_if_there_is_only_one(capsys):
    alone = prediction(40.0).model_copy(update={"cards": (card_prediction("a100_80gb", 40.0),)})
    console().print(script_predictions_view([alone]))
    assert "peak 10.00 GiB on a100_80gb in backward, step 1" in capsys.readouterr().out


def test_every_card_is_predicted_unless_cards_are_given_and_json_names_the_smallest_that_fits(requested_traces, capsys):
    assert main(["predict", "--json", "--", "python", "x.py"]) == 0
    assert "h200_141gb" in requested_traces[0][1]
    data = json.loads(capsys.readouterr().out)
    assert data["smallest_card"] == "a100_80gb"
    assert [card["outcome"] for card in data["predictions"][0]["cards"]] == ["oom", "fits"]


@pytest.mark.parametrize(("limit", "code"), [("40", 0), ("39.9", 1)])
def test_the_exit_code_depends_on_whether_the_peak_exceeds_a_limit_in_gib(requested_traces, capsys, limit, code):
    assert main(["predict", "--max-gib", limit, "--", "python", "x.py"]) == code
    assert ("40.00 GiB are needed, more than --max-gib 39.9" in capsys.readouterr().err) == bool(code)


@pytest.mark.parametrize(("code", "expected"), [(7, 7), (-9, 137)])
def test_a_script_that_fails_gives_its_exit_code(monkeypatch, capsys, code, expected):
    def fails(*_, **__):
        raise trace.ScriptFailed(code)

    monkeypatch.setattr(trace, "trace_script", fails)
    assert main(["predict", "--", "python", "x.py"]) == expected
    assert "the script itself failed" in capsys.readouterr().err


def test_a_known_cause_of_a_failure_is_the_last_line(monkeypatch, capsys):
    def fails(*_, **__):
        raise trace.ScriptFailed(1, "missing: the file a.csv")

    monkeypatch.setattr(trace, "trace_script", fails)
    assert main(["predict", "--", "python", "x.py"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "testbed: missing: the file a.csv"


def test_the_page_of_a_prediction_is_one_file_without_javascript(requested_traces, tmp_path):
    page = tmp_path / "page.html"
    assert main(["predict", "--page", str(page), "--", "python", "<b>.py"]) == 0
    text = page.read_text()
    assert "&lt;b&gt;.py" in text
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in text
    assert main(["predict", "--page", str(tmp_path / "no" / "page.html"), "--", "python", "x.py"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "4", "--", "python", "x.py"], "--batch: not allowed with a script, which has its own settings"),
        (["--max-gib", "4"], "--max-gib: needs a script's command after --, as in -- python train.py"),
        (
            ["python", "x.py"],
            "predict python x.py: allowed: one SUITE[/ROW]; write a script's command after --, as in -- python",
        ),
        (["--card", "a100", "--", "python", "x.py"], "unknown card 'a100'"),
        (["--card", "24GiB", "--"], "the command after -- is missing, as in -- python train.py"),
        (["single_gpu_blip2/xxl", "--card", "a100_80gb,smallest"], "'smallest' is allowed in testbed predict, for a"),
        (["--steps", "0", "--", "python", "x.py"], "--steps 0: allowed: whole numbers from 1"),
        (["--max-gib", "-1", "--", "python", "x.py"], "--max-gib -1: allowed: numbers from 0"),
    ],
)
def test_options_that_exclude_each_other_are_an_error_in_one_line(requested_traces, capsys, arguments, message):
    assert main(["predict", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert requested_traces == []


def test_the_command_fit_rejects_more_than_one_suite_or_row(capsys):
    assert main(["fit", "python", "x.py"]) == 2
    assert "fit python x.py: allowed: one SUITE/ROW; write a script's command after --" in capsys.readouterr().err


def test_the_smallest_card_that_fits_is_named_first_and_the_shown_peak_is_on_this_card(capsys):
    fits = prediction(40.0).model_copy(update={"peak_gib": 9.0})
    larger = prediction(60.0).model_copy(
        update={"peak_gib": 55.0, "cards": (card_prediction("mi100_32gb", 60.0, usable_gib=31.2),)}
    )
    console().print(script_predictions_view([fits, larger], "bf16-true"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "smallest card that fits: a100_80gb"
    assert any(line.startswith("peak 9.00 GiB on a100_80gb in backward, step 1") for line in lines)
    assert "note: v100_32gb has no bf16 arithmetic." in " ".join(lines)
    assert "no bf16 arithmetic" not in str(script_predictions_view([fits, larger]).renderables[-1])
