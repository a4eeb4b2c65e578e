"""The numbers in the documentation, such as the accuracy of predictions, are those of the stored evidence."""

import json
import math
import re
from statistics import fmean, median
from typing import NamedTuple

import pytest

from experiments.history.lease_record import read_records
from experiments.prediction.times.clocks import QUEUED_OPERATIONS
from experiments.prediction.times.phase import HOST_FACTORS, LINK_SHARE, RANK_SPREAD, PhaseTime, slowest_host
from experiments.suites.attention_kernels import group_by_kernels
from experiments.suites.cards import parse_card_list
from tests.benchmarks.prediction.host_times.checkpointing import additional_s
from tests.benchmarks.training.rank_hosts.fitting import fit_hooks, hook_times, pairs, spread_of_ranks
from tests.docs.blocks import ROOT
from tests.support.results.semesters import time_noise
from tests.testbed.chain.rehearse import STORED_LEASES

EVIDENCE = ROOT / "experiments" / "evidence"
SUMMARY = re.compile(r"^(?:[\w ]+): median(?: error)? ([\d.]+)%, worst ([\d.]+)% of (\d+) cases$", re.MULTILINE)
LONE_LOOPS = "prediction_h200/lone_loops.md"
SCRIPT_TIMES = re.compile(r"^step: mean ([\d.]+)%, median ([\d.]+)%, worst [\d.]+% of (\d+) cases$", re.MULTILINE)
COUNTS = {5: "five", 7: "seven", 8: "eight", 9: "nine", 11: "eleven"}
TIMES_HOW_TO = "how-to/predict-times.md"
TIMES = re.compile(r"^Error: mean ([\d.]+)%, worst ([\d.]+)%;", re.MULTILINE)


class Summary(NamedTuple):
    """The median and the largest error of a stored table, percent, and the number of its cases."""

    median: str
    largest: str
    cases: str


def page(name: str = "concepts/prediction.md") -> str:
    """Return a page of the documentation, with single spaces between words."""
    return " ".join((ROOT / "docs" / name).read_text().split())


def summaries(table: str) -> list[Summary]:
    """Return the summaries in a stored table: first that of the peak, then that of reserved memory."""
    return [Summary(*found) for found in SUMMARY.findall((EVIDENCE / table).read_text())]


def test_the_page_states_the_stored_errors_of_the_training_runs() -> None:
    peak, reserved, ranks_peak, ranks_reserved = summaries("prediction_h200/comparison.md")
    assert f"{peak.cases} training runs were measured on an H200" in page()
    assert f"| one GPU, median | {peak.median} % | {reserved.median} % |" in page()
    assert f"| one GPU, largest | {peak.largest} % | {reserved.largest} % |" in page()
    assert f"| two GPUs, median | {ranks_peak.median} % | {ranks_reserved.median} % |" in page()
    assert f"| two GPUs, largest | {ranks_peak.largest} % | {ranks_reserved.largest} % |" in page()


def test_the_page_of_the_evidence_states_the_stored_errors_of_the_training_runs() -> None:
    text = (EVIDENCE / "README.md").read_text()
    peak, reserved, *_ = summaries("prediction_h200/comparison.md")
    assert f"the largest error of a peak is {peak.largest}%" in text
    assert f"| median | {peak.median}% | {reserved.median}% |" in text
    assert f"| largest | {peak.largest}% | {reserved.largest}% |" in text


def test_the_page_states_the_stored_memory_errors_of_the_scripts() -> None:
    peak, reserved = summaries("prediction_h100/scripts.md")
    assert f"{peak.cases} unchanged training scripts were measured" in page()
    assert f"| median | {peak.median} % | {reserved.median} % |" in page()
    assert f"| largest | {peak.largest} % | {reserved.largest} % |" in page()


def test_the_page_states_the_stored_errors_of_the_training_loops() -> None:
    peak, _ = summaries("prediction_h100/loops.md")
    assert f"The median error of the peak is {peak.median} %. The largest error is {peak.largest} %" in page()


def test_the_page_states_the_stored_differences_of_the_first_ranks_that_ran_alone() -> None:
    text = (EVIDENCE / LONE_LOOPS).read_text()
    (largest_difference, _), (_, reserved) = re.findall(r"([\d.]+) GiB of", text), summaries(LONE_LOOPS)
    errors = [float(line.split(" | ")[-1].strip(" |%")) for line in text.splitlines() if line.endswith("% |")]
    small = [abs(error) for error in errors if abs(error) < 1]
    known = f"In all {len(errors)} training runs, the peak differs by at most {largest_difference} GiB from"
    assert f"{known} the predicted one." in page()
    assert f"The reserved memory differs by at most {max(small):.2f} % in {len(small)} of them." in page()
    assert f"In the other three, its largest error is {reserved.largest} %." in page()
    assert len(errors) - len(small) == 3


def test_the_page_states_the_stored_number_of_published_measurements() -> None:
    known, other = summaries("prediction_published/published.md")
    assert f"with {int(known.cases) + int(other.cases)} measurements that other people published" in page()
    assert f"the median error is {known.median} % and the largest error {known.largest} %" in page()


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("prediction_h100", "Compared with {rows} measured steps on an H100, the mean error is {mean} %"),
        ("prediction_h200", "Compared with {rows} measured steps on an H200, the mean error is {mean} %"),
    ],
)
def test_the_page_states_the_stored_errors_of_step_times(folder: str, sentence: str) -> None:
    text = (EVIDENCE / folder / "step_times.md").read_text()
    ((mean, largest),) = TIMES.findall(text)
    rows = text.count("\n| ") - 1
    assert f"{sentence.format(rows=rows, mean=mean)} and the largest {largest} %." in page()


def test_the_page_states_the_stored_errors_with_constants_of_the_other_suites() -> None:
    rows = {
        card: json.loads((EVIDENCE / f"prediction_{card}" / "step_times.json").read_text())["rows"]
        for card in ("h100", "h200")
    }
    errors = [[100 * abs(one["held_out_error"]) for one in found] for found in rows.values()]
    h100, h200 = (f"{fmean(each):.1f} %" for each in errors)
    assert f"the mean error is {h100} on an H100, and {h200} on an H200." in page()
    assert f"The largest errors are {max(errors[0]):.1f} % and {max(errors[1]):.1f} %." in page()


def test_the_page_states_the_stored_errors_on_the_machine_where_operations_were_measured() -> None:
    found = json.loads((EVIDENCE / "prediction_h200" / "calibrated" / "step_times.json").read_text())
    by_host = mean_errors_by_host([(abs(one["error"]), one["limited_by"]) for one in found["rows"]])
    largest = (
        f"{len(found['rows'])} steps have a mean error of {100 * found['mean_error']:.1f} % and a largest error of"
    )
    assert f"{largest} {100 * found['errors']['worst']:.1f} %" in page()
    assert (
        f"The mean error is {by_host[False]} if the GPU limits the step, and {by_host[True]} if the host does."
        in page()
    )


def test_the_page_states_the_stored_errors_of_host_times_in_forward_and_backward_passes() -> None:
    found = json.loads((EVIDENCE / "prediction_h200" / "host_times.json").read_text())
    rows = len({one["row"] for one in found["rows"]})
    assert f"the forward and the backward pass of {rows} rows on another machine, whose host needs" in page()
    assert f"{found['host_ratio']:.2f} times as long for the operations of the table" in page()
    forward, backward = (f"{100 * found['errors'][name]['mean']:.1f} %" for name in ("forward", "backward"))
    assert f"mean error is {forward} for a forward pass and {backward} for a backward pass." in page()


def test_the_page_states_the_stored_errors_of_torchaos_optimizers() -> None:
    found = json.loads((EVIDENCE / "prediction_h200" / "torchao.json").read_text())
    models = {row["model"] for row in found["rows"]}
    peak, reserved = (f"{100 * found['largest_errors'][name]:.1f} %" for name in ("peak", "reserved"))
    assert len(models) == 2
    assert f"{len(found['rows'])} training runs of two models have a largest error of the peak of {peak}" in page()
    assert f"and of reserved memory of {reserved} (" in page()


def test_the_page_states_the_stored_bytes_of_an_update_by_torchao() -> None:
    lines = (EVIDENCE / "prediction_h200" / "torchao.jsonl").read_text().splitlines()
    updates = {one["optim"]: one for one in map(json.loads, lines) if "events" in one}
    bits_4, bits_8 = (
        sum(size for size in updates[name]["events"] if size > 0) / math.prod(updates[name]["shape"])
        for name in ("adamw_4bit", "adamw_8bit_torchao")
    )
    assert (
        f"needs {bits_4:.0f} bytes for each value of the parameter in 4 bit, and {bits_8:.0f} bytes in 8 bit" in page()
    )


def test_the_page_states_the_stored_time_and_memory_of_a_prediction() -> None:
    costs = json.loads((EVIDENCE / "prediction_h200" / "time_to_answer.json").read_text())["costs"]

    def both(name: str) -> tuple[str, str]:
        return f"{costs['--model'][name]:.1f}", f"{costs['script'][name]:.1f}"

    model, script = both("overhead_elapsed_s")
    assert f"took {model} s longer than the imports alone with `--model`, and {script} s for" in page()
    predictions, imports = " and ".join(both("prediction_cpu_s")), " and ".join(both("imports_cpu_s"))
    assert f"predictions needed {predictions} s of CPU time, the imports alone {imports} s." in page()
    assert f"The largest process needed {' and '.join(both('host_gib'))} GiB of host memory" in page()


def test_the_page_states_the_same_constants_for_host_times_as_the_code() -> None:
    assert f"In a backward pass, it is {HOST_FACTORS['backward']} times the sum" in page()
    assert f"the host also needs {1000 * HOST_FACTORS['kernel choices']} ms, in which cuBLAS or cuDNN" in page()


def test_the_host_time_of_checkpointing_is_that_of_the_stored_measurements() -> None:
    folder = EVIDENCE / "prediction_h200"
    lines = [json.loads(line) for line in (folder / "checkpointing.jsonl").read_text().splitlines()]
    constant = median(additional_s(one["without"], one["with"]) / one["layers"] for one in lines)
    assert json.loads((folder / "checkpointing.json").read_text())["checkpoints_s"] == constant
    assert pytest.approx(constant, rel=0.005) == HOST_FACTORS["checkpoints"]
    stated = f"For each checkpointed layer, the host also needs {1000 * HOST_FACTORS['checkpoints']:.2f} ms,"
    assert stated in page()


def test_the_host_time_of_the_trainer_is_that_of_the_stored_measurements() -> None:
    folder = EVIDENCE / "prediction_h200"
    first, *lines = map(json.loads, (folder / "trainer_steps.jsonl").read_text().splitlines())
    constant = median(line["calls"] / line["modules"] for line in lines) / first["host_ratio"]
    assert json.loads((folder / "trainer_steps.json").read_text())["modules_s"] == pytest.approx(constant)
    assert pytest.approx(constant, rel=0.005) == HOST_FACTORS["modules"]
    assert (
        f"in rows and in scripts, needs {1e6 * HOST_FACTORS['modules']:.1f} µs more for each module of the model"
        in page()
    )
    assert f"the host also needs {1000 * HOST_FACTORS['micro-steps']:.0f} ms to load the batch" in page()
    assert f"at most {QUEUED_OPERATIONS} operations before the GPU has executed the first of them" in page()


def test_the_page_states_the_stored_errors_of_rows_that_were_measured_again() -> None:
    folder = EVIDENCE / "prediction_h200" / "repeated"
    found = json.loads((folder / "step_times.json").read_text())
    errors = f"{100 * found['mean_error']:.1f} % and a largest error of {100 * found['errors']['worst']:.1f} %"
    assert (
        f"Compared with {len(found['rows'])} steps on a third machine, the predictions have a mean error of" in page()
    )
    assert errors in page()
    seconds = [one["measured_s"] for one in found["rows"] if one["row"] == "single_gpu_blip2/xxl-sgd"]
    assert f"T5-XXL with SGD took {' s and '.join(f'{each:.2f}' for each in seconds)} s" in page()


def test_the_page_states_the_stored_errors_for_measured_hosts() -> None:
    folders = ("measured_host", "measured_host_again")
    found = [json.loads((EVIDENCE / "prediction_h200" / folder / "step_times.json").read_text()) for folder in folders]
    first, second = (f"{one['host_ratio']:.2f}" for one in found)
    assert f"{first} and {second} times the time of the host of the table." in page()
    (mean, table_mean), (mean_again, table_mean_again) = (
        [f"{100 * one[name]:.1f} %" for name in ("mean_error", "table_host_mean_error")] for one in found
    )
    rows = " and ".join(str(len(one["rows"])) for one in found)
    assert f"the {rows} predictions have a mean error of {mean} and {mean_again}, and of" in page()
    assert f"of {table_mean} and {table_mean_again} for the host of the table." in page()
    fast = json.loads((EVIDENCE / "prediction_h200" / "measured_host_fast" / "step_times.json").read_text())
    mean, table_mean = (f"{100 * fast[name]:.1f} %" for name in ("mean_error", "table_host_mean_error"))
    assert f"the host needed {fast['host_ratio']:.2f} times the time. The {COUNTS[len(fast['rows'])]} rows" in page()
    assert f"have a mean error of {mean} for this host, and of {table_mean} for the host of the table (" in page()


def test_the_page_states_the_stored_time_errors_of_the_scripts() -> None:
    text = (EVIDENCE / "prediction_h200" / "scripts.md").read_text()
    ((mean, median, cases),) = SCRIPT_TIMES.findall(text)
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    by_host = mean_errors_by_host([(abs(float(cells[9].rstrip("%"))) / 100, cells[10]) for cells in lines])
    assert (
        f"{cases} scripts, which use no engine of the labs, were also measured on the machine of the table." in page()
    )
    assert f"Their mean error is {float(mean):.1f} % and their median error {float(median):.1f} %." in page()
    means = f"{by_host[False]} if the GPU limits the step, and {by_host[True]} if the host does"
    assert f"The mean error is {means} (`prediction_h200/scripts.md`)" in page()
    of_both = f"has a mean error of {by_host[False]}, otherwise of {by_host[True]}."
    assert f"if the GPU limits a step, its predicted time {of_both}" in page(TIMES_HOW_TO)


def mean_errors_by_host(errors: list[tuple[float, str]]) -> dict[bool, str]:
    """Return the mean error of the steps that the host limits (True), and of the others."""
    return {
        host: f"{100 * fmean(error for error, limit in errors if (limit == 'host') == host):.1f} %"
        for host in (False, True)
    }


def test_the_page_states_the_stored_errors_of_step_times_on_several_gpus() -> None:
    found = json.loads((EVIDENCE / "prediction_h200" / "several_gpus.json").read_text())
    mean, worst = (f"{100 * found['errors'][name]:.1f} %" for name in ("mean", "worst"))
    sentence = f"Compared with {len(found['rows'])} measured steps on several H200 GPUs, the mean error is {mean}"
    assert f"{sentence} and the largest {worst}." in page()
    on_four, on_two = (f"{100 * found['means'][count]:.1f} %" for count in ("4", "2"))
    assert f"The mean error is {on_four} on four GPUs, and {on_two} on two." in page()
    known_host = found["known_host_errors"]
    assert f"for {known_host['rows']} of the steps, the mean error is {100 * known_host['mean']:.1f} %" in page()


def test_the_page_states_the_same_constants_for_times_on_several_gpus_as_the_code() -> None:
    assert f"reach {100 * LINK_SHARE:.0f} % of the link's peak rate" in page()
    assert f"the host needs {1000 * HOST_FACTORS['shards']:.2f} ms for the hooks" in page()
    assert f"which takes {1e6 * HOST_FACTORS['views']:.1f} µs each time" in page()
    on_two, on_four = (
        f"{100 * (slowest_host([PhaseTime({'forward': 1.0}, {})], ranks)[0].host_s - 1):.1f} %" for ranks in (2, 4)
    )
    assert f"have a standard deviation of {100 * RANK_SPREAD:.1f} %." in page()
    assert f"is therefore {on_two} longer on two ranks, and {on_four} longer on four" in page()


def test_the_constants_of_several_ranks_are_those_of_the_stored_measurements() -> None:
    found = json.loads((EVIDENCE / "prediction_h200" / "rank_hosts.json").read_text())
    lines, passes, hosts = (
        [json.loads(line) for line in (EVIDENCE / "prediction_h200" / name).read_text().splitlines()]
        for name in ("rank_hooks.jsonl", "rank_passes.jsonl", "host_times.jsonl")
    )
    shard_s, view_s = fit_hooks(hook_times(lines))
    constants = {"shards": shard_s, "views": view_s, "spread": spread_of_ranks(pairs(passes, hosts[1:]))}
    assert found["constants"] == constants
    used = {"shards": HOST_FACTORS["shards"], "views": HOST_FACTORS["views"], "spread": RANK_SPREAD}
    assert used == pytest.approx(constants, rel=0.005)


def test_errors_on_another_machine_with_two_gpus_are_the_stored_ones() -> None:
    found = json.loads((EVIDENCE / "prediction_h200" / "rank_hosts.json").read_text())
    several, single = ([one for one in found["steps"] if (kind in one["row"])] for kind in ("4gpu", "1gpu"))
    on_two, on_one = ([100 * one["stored_s"] / one["measured_s"] - 100 for one in rows] for rows in (several, single))
    longer = f"took {min(on_two):.0f} to {max(on_two):.0f} % longer in the stored runs, those on one GPU"
    assert f"{longer} {min(on_one):.0f} to {max(on_one):.0f} % longer." in page()
    mean = fmean(abs(one["error"]) for one in several)
    assert f"Compared with these {len(several)} steps on two GPUs, the mean error is {100 * mean:.1f} %" in page()


def test_the_page_states_the_stored_errors_of_unmeasured_operations() -> None:
    errors = json.loads((EVIDENCE / "prediction_h100" / "estimated_operations.json").read_text())
    every, products, attention = (
        f"{100 * errors[name]['median']:.2f} %" for name in ("all", "matrix products", "attention")
    )
    assert f"the median error is {every}: for matrix products {products}, for attention {attention}" in page()


def test_the_pages_state_the_stored_errors_of_published_times() -> None:
    found = json.loads((EVIDENCE / "prediction_published" / "times.json").read_text())
    names = ("error", "allocation_error", "clearing_error", "neusight_error", "roofline_error", "factor_error")
    for one in found["means"].values():
        cells = [one["labels"], *(f"{100 * one[name]:.1f} %" for name in names)]
        assert f"| {' | '.join(map(str, cells))} |" in page()
    ours = {card: f"{100 * one['error']:.1f} %" for card, one in found["means"].items()}
    how_to = page(TIMES_HOW_TO)
    assert f"the mean error is {ours['h100_80gb']} on an H100 80GB, {ours['v100_32gb']} on a V100 32GB (PCIe)" in how_to
    assert f"{ours['a100_80gb']} on an A100 80GB (PCIe) and {ours['l4_24gb']} on an L4" in how_to
    clearing = found["means"]["a100_80gb"]["clearing_error"]
    assert f"mean error on the A100 is {100 * clearing:.1f} %" in how_to
    assert f"a mean error of {100 * found['means']['a100_80gb']['backward_error']:.1f} %" in page()
    assert f"published measurements of {len(found['labels'])} trainings" in page()


def test_the_page_states_the_stored_times_of_published_forward_passes() -> None:
    found = json.loads((EVIDENCE / "prediction_published" / "times.json").read_text())
    forward = {one["training"]: one for one in found["labels"] if one["card"] == "a100_80gb"}
    longer = sorted(one["measured_s"][0] / one["predicted_s"][0] - 1 for one in forward.values())
    slow = [round(100 * one) for one in longer if one > 0.1]
    words = f"{COUNTS[len(slow)]} of {COUNTS[len(longer)]} forward passes took {slow[0]} to {slow[-1]} % longer"
    others = f"the others {-100 * longer[0]:.0f} % less to {100 * longer[-len(slow) - 1]:.0f} % more"
    assert f"On the A100, {words} than predicted, and {others}." in page()
    two, one = forward["opt_13-2048-2"], forward["opt_13-2048-1"]
    allocated = f"allocates {two['allocated_gib'][0]:.0f} GiB, of which {two['uncleared_gib']:.0f} GiB"
    assert f"With two texts, the forward pass of OPT {allocated} have to be cleared." in page()
    assert one["uncleared_gib"] == forward["bert_large-512-8"]["uncleared_gib"] == 0
    assert f"With one text, it allocates {one['allocated_gib'][0]:.0f} GiB, and nothing" in page()
    sums = {each["training"]: each for each in found["forward_operations"] if each["card"] == "a100_80gb"}
    for name in ("opt_13-2048-1", "opt_13-2048-2"):
        measured_ms, operations_ms = (f"{1000 * sums[name][key]:.0f} ms" for key in ("measured_s", "operations_s"))
        assert re.search(f"take {operations_ms} in total, (but its|and the) forward pass took {measured_ms}", page())
    assert f"BERT with eight texts took {1000 * sums['bert_large-512-8']['rest_s']:.0f} ms longer" in page()


def test_the_page_states_the_stored_errors_of_published_linear_layers() -> None:
    layers = json.loads((EVIDENCE / "prediction_published" / "times.json").read_text())["linear_layers"]
    errors = {name: 100 * fmean(abs(one[f"{name}_error"]) for one in layers) for name in ("bias", "none")}
    assert f"measured {COUNTS[len(layers)]} linear layers, each on its own" in page()
    assert f"with a bias, they have a mean error of {errors['bias']:.1f} %" in page()
    assert f"without a bias, they have a mean error of {errors['none']:.1f} %" in page()


def test_the_page_states_the_stored_errors_of_pytorchs_estimator() -> None:
    found = json.loads((EVIDENCE / "prediction_h100" / "step_times.json").read_text())
    estimated = [one for one in found["rows"] if one["torch_s"]]
    words = f"RuntimeEstimator runs on {len(estimated)} of the {len(found['rows'])} rows and has a mean error of"
    assert f"{words} {100 * found['torch_errors']['mean']:.0f} %" in page()


def test_the_page_states_the_stored_errors_of_the_times_of_whole_runs() -> None:
    errors = json.loads((EVIDENCE / "prediction_h200" / "wall_times.json").read_text())["errors"]
    rows, remaining = errors["Sums of rows"], errors["Remaining time after a quarter of the rows"]
    mean, worst = f"{100 * rows['mean']:.1f} %", f"{100 * rows['worst']:.1f} %"
    assert f"the mean error of the sum is {mean}, and the largest one {worst} ({rows['number']} runs)" in page()
    whole, known = (errors[f"Whole runs, steps {way}"] for way in ("predicted", "measured before"))
    left = errors["Remaining time of whole runs, steps predicted"]
    mean, worst = f"{100 * whole['mean']:.1f} %", f"{100 * whole['worst']:.1f} %"
    assert f"the whole run has a mean error of {mean} and a largest error of {worst}." in page()
    assert f"the errors are {100 * known['mean']:.1f} % and {100 * known['worst']:.1f} %." in page()
    left_over = f"{100 * remaining['mean']:.1f} % ({remaining['number']} runs), and {100 * left['mean']:.1f} %"
    assert f"its mean error is {left_over} in the five whole runs" in page()


def test_the_page_states_the_noise_of_times_in_the_stored_runs() -> None:
    assert f"The noise of the stored runs is {100 * time_noise():.1f} %." in page("how-to/follow-runs.md")


def test_the_page_states_the_stored_errors_and_outcomes_of_programs_of_other_people():
    peak, reserved = summaries("prediction_h200/foreign.md")
    section = page().partition("### Programs of other people")[2].partition("###")[0]
    assert f"| median | {peak.median} % | {reserved.median} % |" in section
    assert f"| largest | {peak.largest} % | {reserved.largest} % |" in section
    outcomes = (EVIDENCE / "prediction_h200" / "foreign_verdicts.md").read_text()
    (far, all_far), (near, all_near) = re.findall(r"(\d+) of (\d+) outcomes", outcomes)
    assert f"Of {all_far} runs with limits that differ from this memory by 2 % or more, {far} ended as" in section
    assert f"So did {near} of {all_near} runs with closer limits." in section


def test_the_errors_of_stored_rehearsals_are_those_of_their_records() -> None:
    records = read_records(STORED_LEASES.parent)
    errors = sorted(abs(100 * record.relative_error) for record in records[1:])
    assert len(records) == 5
    assert f"by {errors[0]:.0f} to {errors[-1]:.0f} %." in page("how-to/rehearse.md")


def test_the_page_states_how_often_a_script_runs_for_all_cards() -> None:
    groups = group_by_kernels(parse_card_list("all"))
    assert f"`--card all` runs the script {COUNTS[len(groups)]} times" in page("how-to/predict-a-script.md")
