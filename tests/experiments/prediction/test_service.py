"""`testbed predict`, `testbed fit`, and the predictions before a run. Fake: the predictions."""

import json

import pytest

from experiments.cli import output
from experiments.cli.app import main
from experiments.errors import InputError
from experiments.pipeline import run_suite
from experiments.prediction import service
from experiments.prediction.script import trace
from experiments.results.run_folder import RunFolder
from experiments.run_options import RunOptions
from experiments.suites.cards import parse_card_list
from experiments.suites.suite import suite_named, suite_names
from tests.support.runners.fake_predictions import Predictor, stated, step_time
from tests.support.runners.fake_runner import SUITE
from tests.support.runners.fake_traces import FakeTracer
from tests.support.runners.fake_view import RecordingView

CARD = "a100_80gb"
LLAMA = ("--model", "tiny-llama-1.1b", "--card", "v100_32gb", "--loop", "lightning")
UP_TO = "batches up to {} probably fit (borderline)"
ROW = (f"{SUITE}/reduced-batch", "--card", CARD)
SIZED = ("--model", "tiny-llama-1.1b", "--loop", "lightning")


@pytest.fixture
def testbed(capsys, monkeypatch):
    """Run the command line with fake predictions; return exit code, standard output and standard error."""

    def run(*arguments: str, needs=stated, **changes) -> tuple[int, str, str]:
        monkeypatch.setattr(service, "predict", Predictor(needs, **changes))
        FakeTracer(needs, **changes).install(monkeypatch)
        code = main(list(arguments))
        return code, *capsys.readouterr()

    return run


def needs_two_for_each(spec) -> float:
    return 10.0 + 2.0 * spec.settings.batch_size


def needs_five_for_each(spec) -> float:
    return 10.0 + 5.0 * spec.settings.batch_size


def test_without_a_suite_every_row_of_every_suite_is_predicted_on_each_of_its_cards(testbed):
    code, out, _ = testbed("predict", "--json")
    suites = [suite_named(name) for name in suite_names()]
    rows = [(suite.suite, row.id, card) for suite in suites for card in suite.cards for row in suite.rows_for(card)]
    assert code == 0
    assert [(one["suite"], one["row"], one["card"]) for one in json.loads(out)] == rows


@pytest.mark.parametrize(
    ("arguments", "rows", "cards"),
    [
        ([SUITE], 15, {"a100_80gb", "h100_94gb"}),
        ([SUITE, "--card", "h100_94gb"], 15, {"h100_94gb"}),
        ([f"{SUITE}/xxl"], 1, {"a100_80gb", "h100_94gb"}),
        ([f"{SUITE}/xxl", "--card", CARD], 1, {CARD}),
        (["--card", "a100_40gb"], 10, {"a100_40gb"}),
    ],
)
def test_suite_row_and_card_choose_what_is_predicted(testbed, arguments, rows, cards):
    found = json.loads(testbed("predict", *arguments, "--json")[1])
    assert {one["card"] for one in found} == cards
    assert len({one["row"] for one in found}) == rows


def test_all_ranks_of_a_row_are_predicted_on_request(testbed):
    target = ("predict", "multi_gpu_litgpt", "--card", CARD, "--json")
    first, every = (json.loads(testbed(*target, *option)[1]) for option in ((), ("--all-ranks",)))
    assert {one["rank"] for one in first} == {0}
    ranks = {row: [one["rank"] for one in every if one["row"] == row] for row in ("7b-1gpu", "7b-4gpu-ddp")}
    assert ranks == {"7b-1gpu": [0], "7b-4gpu-ddp": [0, 1, 2, 3]}
    assert list(dict.fromkeys(one["row"] for one in every)) == [one["row"] for one in first]


def test_the_table_of_all_ranks_names_the_rank_of_each_line(testbed):
    _, out, err = testbed("predict", "multi_gpu_litgpt/7b-4gpu-ddp", "--all-ranks")
    assert [f"7b-4gpu-ddp, rank {rank} " in out for rank in range(4)] == [True] * 4
    assert "multi_gpu_litgpt/7b-4gpu-ddp, rank 3, batch 4" in err


@pytest.mark.parametrize("arguments", [("predict", *LLAMA[:4], "--loop", "plain"), ("fit", f"{SUITE}/xxl")])
def test_all_ranks_are_only_for_rows_and_scripts_that_are_predicted(testbed, arguments):
    code, _, err = testbed(*arguments, "--all-ranks")
    assert (code, "--all-ranks" in err) == (2, True)


def test_json_has_the_memory_of_a_row_and_whether_it_agrees_with_the_lab(testbed):
    (one,) = json.loads(testbed("predict", f"{SUITE}/baseline", "--card", CARD, "--json", needs=lambda spec: 70.0)[1])
    assert (one["expected"], one["verdict"], one["agrees"]) == ("oom", "fits", False)
    assert one["params"] == 3744761856
    assert one["margin_gib"] == pytest.approx(8.6)
    assert one["usable_gib"] - one["needed_gib"] == pytest.approx(one["margin_gib"])
    assert sum(one["at_peak"].values()) == pytest.approx(one["peak_gib"])
    assert one["rule_of_thumb_gib"] == 5 * 14.0


def test_the_json_of_a_custom_training_is_one_object(testbed):
    code, out, err = testbed("predict", *LLAMA, "--batch", "8", "--json", needs=needs_two_for_each, params_gib=2.0)
    answer = json.loads(out)
    (one,) = answer["predictions"]
    assert (code, err) == (0, "tracing tiny-llama-1.1b, batch 8\n")
    assert (answer["loop"], answer["smallest_card"]) == ("lightning", "v100_32gb")
    assert "loop: Lightning's Trainer" in answer["assumed"]
    assert (one["model"], one["peak_gib"], one["host_gib"]) == ("LlamaForCausalLM", 26.0, 0.5)
    assert one["cards"][0]["outcome"] == "fits"


def test_several_cards_and_batches_are_predicted_in_one_call(testbed):
    asked = (
        "predict",
        "--model",
        "tiny-llama-1.1b",
        "--loop",
        "lightning",
        "--card",
        "v100_32gb,a100_80gb",
        "--batch",
        "1,16,64",
    )
    found = json.loads(testbed(*asked, "--json", needs=needs_two_for_each)[1])
    answers = {
        (card["card"], batch): card["outcome"]
        for batch, one in zip((1, 16, 64), found, strict=True)
        for card in one["predictions"][0]["cards"]
    }
    assert answers == {
        ("v100_32gb", 1): "fits",
        ("v100_32gb", 16): "oom",
        ("v100_32gb", 64): "oom",
        ("a100_80gb", 1): "fits",
        ("a100_80gb", 16): "fits",
        ("a100_80gb", 64): "oom",
    }
    assert [one["smallest_card"] for one in found] == ["v100_32gb", "a100_80gb", None]
    out = testbed(*asked, needs=needs_two_for_each)[1]
    for words in ("that fits: v100_32gb", "16 x 1 samples", "that fits: a100_80gb", "64 x 1 samples", "fits none of"):
        assert words in out
        out = out[out.index(words) :]


def test_the_value_all_means_every_card_of_the_catalog_on_which_pytorch_runs(testbed):
    asked = ("predict", "--model", "tiny-llama-1.1b", "--loop", "lightning", "--card", "all", "--json")
    out = json.loads(testbed(*asked, needs=needs_two_for_each)[1])
    assert {card["card"] for card in out["predictions"][0]["cards"]} == {*parse_card_list("all")}
    assert out["smallest_card"] == "t4_16gb"


def test_a_card_given_by_size_is_predicted_with_its_assumptions(testbed):
    out = testbed("predict", *SIZED, "--card", "24GiB,a100_80gb", needs=needs_two_for_each)[1]
    assert "note: 24GiB: 24.00 GiB; kernels and data types are assumed to be those of a100_80gb" in " ".join(
        out.split()
    )
    assert "smallest card that fits: 24GiB" in out
    out = testbed("fit", *SIZED, "--card", "24GiB", needs=needs_two_for_each)[1]
    assert "kernels and data types are assumed to be those of a100_80gb" in " ".join(out.split())


def test_the_output_names_the_loop_and_the_settings_of_a_custom_training(testbed):
    flags = ("--seq", "256", "--precision", "bf16-true", "--optim", "sgd", "--lora-r", "8", "--devices", "2")
    for command in ("predict", "fit"):
        words = " ".join(testbed(command, *LLAMA, *flags, needs=needs_two_for_each, params_gib=2.0)[1].split())
        assert words.startswith("loop: Lightning's Trainer (others: --loop trainer, plain, litgpt); 1 x 1 samples")
        assert "each a text of 256 tokens, bf16-true, sgd, LoRA rank 8, 2 GPUs, ddp" in words


@pytest.mark.parametrize(
    ("card", "precision", "emulated"),
    [("v100_32gb", "bf16-true", True), ("v100_32gb", "32-true", False), ("a100_40gb", "bf16-mixed", False)],
)
def test_bf16_on_a_card_without_bf16_arithmetic_is_noted(testbed, card, precision, emulated):
    asked = ("predict", "--model", "tiny-llama-1.1b", "--loop", "lightning", "--card", card, "--precision", precision)
    assert (f"note: {card} has no bf16 arithmetic" in testbed(*asked, needs=needs_two_for_each)[1]) is emulated


def test_rows_are_predicted_on_several_cards(testbed):
    found = json.loads(testbed("predict", f"{SUITE}/xxl", "--card", "a100_80gb,h100_94gb", "--json")[1])
    assert [one["card"] for one in found] == ["a100_80gb", "h100_94gb"]


def test_the_output_fits_a_narrow_terminal(testbed, monkeypatch):
    monkeypatch.setattr(output, "PIPE_WIDTH", 80)
    for cards_asked in ("all", "v100_32gb"):
        asked = (
            "predict",
            "--model",
            "tiny-llama-1.1b",
            "--loop",
            "lightning",
            "--card",
            cards_asked,
            "--batch",
            "1,2",
        )
        out = testbed(*asked, needs=needs_two_for_each, params_gib=2.0)[1]
        assert "…" not in out
        assert "14.00" in out
        assert "largest at the peak" in out


def test_a_table_shows_the_memory_of_each_row_and_differences_from_the_lab(testbed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = testbed("predict", SUITE, "--card", CARD, needs=lambda spec: 70.0)[1]
    (line,) = [line for line in out.splitlines() if "reduced-batch" in line]
    for shown in ("14.00", "28.00", "70.00", "71.00", "backward, step 1", "fits", "+8.60", "fits: agrees"):
        assert shown in line
    assert "oom: differs" in out
    assert f"{SUITE}, {CARD}: 78.60 GiB usable" in out


@pytest.mark.parametrize("command", ["predict", "fit"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope/xxl"], "unknown suite 'nope'; allowed: "),
        ([f"{SUITE}/nope"], f"suite {SUITE}: unknown row 'nope'; allowed: baseline, "),
        ([f"{SUITE}/xxl", "--card", "nope"], "--card: unknown card 'nope'; allowed: a100_80gb, "),
        ([f"{SUITE}/xxl", "--card", "24GiB"], f"suite {SUITE}: unknown card '24GiB'; allowed: a100_80gb, h100"),
        ([*SIZED, "--card", "24Gi"], "--card: unknown card '24Gi'; allowed: a100_80gb, "),
        ([*SIZED, "--card", "k80_12gb"], "--card k80_12gb: too old for PyTorch: compute capability 3.7; "),
        ([f"{SUITE}/xxl", "--card", "v100_32gb"], f"suite {SUITE}: unknown card 'v100_32gb'; allowed: a100_80gb, h100"),
        (["multi_gpu_litgpt/3b-1gpu", "--card", CARD], "unknown row '3b-1gpu'; allowed: 7b-1gpu, "),
        ([f"{SUITE}/xxl", "--batch", "8"], "--batch: needs --model; a row has its own settings"),
        ([f"{SUITE}/xxl", *LLAMA], "--model tiny-llama-1.1b: not allowed with 'single_gpu_blip2/xxl'"),
        (["--model", "tiny-llama-1.1b"], "--model tiny-llama-1.1b: needs --card, one of a100_80gb, "),
        ([*LLAMA, "--batch", "0"], "--batch 0: allowed: whole numbers from 1 to 999999999, such as 4 or 1,2,4"),
        ([*LLAMA, "--seq", "-5"], "--seq -5: allowed: a whole number above 0"),
        ([*LLAMA, "--seq", "4096"], "--seq 4096: tiny-llama-1.1b has 2048 positions; allowed: 1 to 2048"),
        (["--model", "nope", "--card", CARD], "--model nope: unknown; allowed: "),
    ],
)
def test_an_error_is_reported_in_one_line_with_exit_code_2(testbed, command, arguments, message):
    code, out, err = testbed(command, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_card_that_no_suite_has_is_an_error_even_if_no_suite_is_given(testbed):
    for card in ("h200_141gb", "24GiB"):
        code, out, err = testbed("predict", "--card", card)
        assert (code, out) == (2, "")
        assert f"--card: unknown card of a suite '{card}'; allowed: a100_80gb, " in err


def test_an_error_of_the_tracer_is_reported(testbed, monkeypatch, capsys):
    def reject(*_, **options):
        raise InputError("question/m on v100_32gb: the model has no layer 'q'")

    monkeypatch.setattr(trace, "trace_script", reject)
    assert main(["predict", *LLAMA]) == 2
    assert capsys.readouterr().err == "testbed: question/m on v100_32gb: the model has no layer 'q'\n"


def test_the_command_fit_shows_the_speed_of_changes_that_fit_and_names_the_fastest(testbed):
    (found,) = json.loads(testbed("fit", *ROW, "--json", needs=needs_five_for_each, time=step_time(2.0))[1])
    speeds = {one["change"]: one["samples_per_s"] for one in found["changes"] if one["verdict"] == "fits"}
    assert (found["samples_per_s"], speeds["batch 8, accumulated 2 times"]) == (8.0, 8.0)
    out = testbed("fit", *ROW, needs=needs_five_for_each, time=step_time(2.0))[1]
    assert "samples/s" in out
    assert "fastest change that fits" not in testbed("fit", *ROW, needs=needs_five_for_each)[1]


def test_the_fastest_change_is_the_one_with_most_samples_per_second(testbed):
    def needs(spec) -> float:
        return 20.0 if spec.settings.world_size > 1 or spec.settings.batch_size < 16 else 90.0

    out = testbed("fit", *ROW, needs=needs, time=step_time(2.0))[1]
    assert "fastest change that fits: FSDP over 8 GPUs, 64 samples/s ±40%" in out


def test_the_command_fit_gives_the_largest_batch_and_the_changes_that_help(testbed):
    (found,) = json.loads(testbed("fit", *ROW, "--json", needs=needs_five_for_each)[1])
    assert (found["batch"], found["verdict"]) == (16, "oom")
    # 2 % of 78.6 GiB are 1.57: batch 13 takes 75 GiB, 14 would take 80
    assert (found["largest_batch"], found["largest_batch_borderline"]) == (13, 13)
    assert found["largest_batch_peak_gib"] == 75.0
    assert found["changes"][0]["change"] == "batch 8, accumulated 2 times"
    assert (found["changes"][0]["verdict"], found["changes"][0]["peak_gib"]) == ("fits", 50.0)
    out = testbed("fit", *ROW, needs=needs_five_for_each)[1]
    assert "batch 16: oom, needs 90.00 of 78.60 GiB (-11.40)" in out
    assert "largest batch that fits: 13, peak 75.00 GiB" in out
    assert "FSDP over 8 GPUs" in out


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (lambda spec: 100.0, "not even a batch of 1 fits"),
        (lambda spec: 77.5 if spec.settings.batch_size < 3 else 90.0, f"no batch certainly fits; {UP_TO.format(2)}"),
        (lambda spec: 20.0 + 5.3 * spec.settings.batch_size, f"fits: 10, peak 73.00 GiB; {UP_TO.format(11)}"),
        (lambda spec: 20.0, "fits: 4096, peak 20.00 GiB (larger batches were not tried)"),
    ],
)
def test_the_command_fit_prints_the_largest_batch_in_words(testbed, needs, message):
    assert message in testbed("fit", *ROW, needs=needs)[1]


def test_the_json_of_the_command_fit_for_a_row_is_a_list_with_one_entry_for_each_card(testbed):
    found = json.loads(testbed("fit", f"{SUITE}/reduced-batch", "--json")[1])
    assert [one["card"] for one in found] == ["a100_80gb", "h100_94gb"]


@pytest.mark.parametrize("arguments", [(), (SUITE,)])
def test_the_command_fit_needs_one_row(testbed, arguments):
    assert testbed("fit", *arguments)[::2] == (2, "testbed: fit: SUITE/ROW or --model is required\n")


def test_progress_counts_traced_rows_and_leaves_out_cached_ones():
    specs = service.select_rows(SUITE, CARD)[:3]
    messages: list[str] = []
    progress = service.TraceProgress(3, messages.append)
    one, two, three = Predictor(stated)(specs)
    progress(specs[0], one, True)
    progress(specs[1], two, False)
    progress(specs[2], three, False)
    assert len(messages) == 2
    assert messages[0].startswith(
        f"predicted {SUITE}/reduced-batch, batch 16, on {CARD}: fits, peak 60.00 GiB (2 of 3, about 0:0"
    )
    assert messages[1].endswith("(3 of 3)")


class TestBeforeARun:
    """Predictions before a run. The fixture ``machine`` predicts the stated outcomes."""

    def run(self, path, **options):
        view = RecordingView()
        done = run_suite(RunOptions(SUITE, rows=("baseline", "reduced-batch"), results=path, **options), view)
        return RunFolder(done.folder), view.lines

    def test_predictions_at_full_size_are_stored_with_the_run(self, machine, tmp_path):
        folder, _ = self.run(tmp_path)
        assert {one.spec.row: one.likely_outcome for one in folder.predictions()} == {
            "baseline": "oom",
            "reduced-batch": "fits",
        }
        assert {(one.spec.size, one.spec.length) for one in folder.predictions()} == {("full", "peak")}

    def test_a_row_whose_predicted_outcome_differs_from_the_lab_s_causes_a_warning(
        self, machine, monkeypatch, tmp_path
    ):
        monkeypatch.setattr(service, "predict", Predictor(lambda spec: 78.0))
        _, lines = self.run(tmp_path)
        warned = [line for line in lines if "the lab states:" in line]
        assert warned == [
            "baseline: the lab states: out of GPU memory; predicted: borderline, more likely fits:"
            " needs 78.00 GiB of 78.60 GiB usable"
        ]

    def test_a_run_continues_without_predictions(self, machine, monkeypatch, tmp_path):
        for mistake in (InputError("no C++ compiler (package g++)"), RuntimeError("the tracer was ended")):

            def reject(*_, why=mistake, **options):
                raise why

            monkeypatch.setattr(service, "predict", reject)
            folder, lines = self.run(tmp_path, rerun=True)
            assert f"not predicted: {mistake}" in lines
            assert folder.predictions() == ()
            assert len(folder.results()) == 2

    def test_if_a_row_cannot_be_traced_the_other_rows_are_predicted(self, machine, monkeypatch, tmp_path):
        problem = f"{SUITE}/baseline on {CARD}: cannot be traced"
        made = Predictor(stated)

        def reject(specs, cache, watch, failed, **options):
            for spec in specs:
                if spec.row == "baseline":
                    failed(spec, RuntimeError(problem))
            return made([spec for spec in specs if spec.row != "baseline"], cache, watch, failed, **options)

        monkeypatch.setattr(service, "predict", reject)
        folder, lines = self.run(tmp_path)
        assert f"not predicted: {problem}" in lines
        assert [one.spec.row for one in folder.predictions()] == ["reduced-batch"]

    def test_predictions_can_be_disabled(self, machine, monkeypatch, tmp_path):
        monkeypatch.setattr(service, "predict", lambda *_: pytest.fail("nobody asked"))
        folder, _ = self.run(tmp_path, predict=False)
        assert folder.predictions() == ()
        assert main(["run", SUITE, "--row", "xxl", "--results", str(tmp_path), "--no-predict"]) == 0

    def test_predictions_of_another_schema_are_rejected_with_a_fix(self, machine, tmp_path):
        folder, _ = self.run(tmp_path)
        path = folder.path / "predictions.json"
        path.write_text(path.read_text().replace('"prediction_version": 1', '"prediction_version": 0'))
        with pytest.raises(
            InputError,
            match=r"does not contain predictions of schema version 1 .*; remove the file, or run the suite again",
        ):
            folder.predictions()
