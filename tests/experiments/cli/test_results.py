"""`testbed evaluate` and `testbed compare`: the CSV of several runs, changes, and the order of the output."""

import csv
import json
from collections import Counter

import pytest

from experiments.cli.app import main
from experiments.cli.tables.verdicts import MAX_REASONS
from experiments.report.compare import compare
from experiments.report.words import STATUSES
from experiments.report.write import reevaluate
from tests.support.results.handwritten import SUITE, h200_run, make_results, make_run, tiny_run, write_run


@pytest.fixture
def testbed(capsys, monkeypatch):
    """Run the command line; return exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "400")

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def worse_run_folder(tmp_path):
    """A run in which the row that fit with SGD runs out of memory, and another trains at half of its speed."""
    run = make_run(run_id="later", started_at="2026-07-08T09:00:00Z")
    results = make_results(run)
    sgd, slow = results["xxl-sgd"], results["reduced-precision"]
    results["xxl-sgd"] = results["xxl"].model_copy(update={"spec": sgd.spec, "fingerprint": sgd.fingerprint})
    speed = slow.speed.model_copy(update={"samples_per_s": slow.speed.samples_per_s / 2})
    results["reduced-precision"] = slow.model_copy(update={"speed": speed})
    return write_run(tmp_path / "later", run, results)


def test_the_csv_has_one_line_for_each_run_with_its_counts_and_changed_files(testbed, tmp_path):
    for name, write in (("alice", h200_run), ("bob", tiny_run)):
        write(tmp_path / "class" / name)
    (tmp_path / "class" / "bob" / SUITE / "xxl-sgd" / "log.txt").write_text("edited\n")
    testbed("evaluate", tmp_path / "class", "--csv", tmp_path / "class.csv")
    with (tmp_path / "class.csv").open(newline="") as file:
        alice, bob = csv.DictReader(file)
    evaluated = reevaluate(tmp_path / "class")
    for line, one in zip((alice, bob), evaluated, strict=True):
        assert {status: int(line[status]) for status in STATUSES} == {
            status: one.evaluation.count(status) for status in STATUSES
        }
        assert (line["suite"], line["size"], line["started_at"]) == (
            *(SUITE, one.evaluation.run.size),
            one.evaluation.run.started_at,
        )
    assert [alice["folder"], bob["folder"]] == ["alice", "bob"]


def test_a_csv_that_cannot_be_written_is_reported_in_one_line(testbed, tmp_path):
    code, _, err = testbed("evaluate", h200_run(tmp_path / "run").path, "--csv", tmp_path)
    assert (code, err) == (2, f"testbed: --csv {tmp_path}: cannot be written (Is a directory)\n")


def test_a_changed_status_sets_the_exit_code(testbed, tmp_path, worse_run_folder):
    first = h200_run(tmp_path / "first").path
    assert testbed("compare", first, worse_run_folder.path)[0] == 1
    assert testbed("compare", worse_run_folder.path, first)[0] == 1
    assert testbed("compare", first, first)[0] == 0


def test_a_changed_value_sets_the_exit_code_only_on_request(testbed, tmp_path):
    run = make_run(run_id="later", started_at="2026-07-08T09:00:00Z")
    results = make_results(run)
    sgd = results["xxl-sgd"]
    memory = sgd.memory.model_copy(update={"peak_gib": sgd.memory.peak_gib * 1.005})
    results["xxl-sgd"] = sgd.model_copy(update={"memory": memory})
    first, later = h200_run(tmp_path / "first"), write_run(tmp_path / "later", run, results)
    assert not compare(first, later).status_or_outcome_changed
    assert testbed("compare", first.path, later.path)[0] == 0
    assert testbed("compare", first.path, later.path, "--fail-on-change")[0] == 1


def test_a_row_in_only_one_run_has_no_changed_outcome(tmp_path):
    run = make_run(run_id="later", started_at="2026-07-08T09:00:00Z")
    results = {row: result for row, result in make_results(run).items() if row != "xxl-sgd"}
    comparison = compare(h200_run(tmp_path / "first"), write_run(tmp_path / "later", run, results))
    assert not comparison.model_copy(update={"verdicts": ()}).status_or_outcome_changed


def test_a_comparison_lists_rows_and_statuses_that_got_worse_first(testbed, tmp_path, worse_run_folder):
    first = h200_run(tmp_path / "first")
    assert [row.row for row in compare(first, worse_run_folder).rows_worse_first][:2] == [
        "xxl-sgd",
        "reduced-precision",
    ]
    back = [
        row for row in compare(worse_run_folder, first).rows_worse_first if row.outcome_before and row.outcome_after
    ]
    assert [row.row for row in back][-2:] == ["reduced-precision", "xxl-sgd"]
    severity = [change.worsening for change in compare(first, worse_run_folder).verdicts]
    assert severity == sorted(severity, reverse=True)
    assert severity[0] > 0
    rows = (
        testbed("compare", first.path, worse_run_folder.path)[1]
        .partition("worse first\n")[2]
        .partition("rows, A → B")[2]
    )
    assert rows.index("xxl-sgd") < rows.index("reduced-precision") < rows.index("baseline")


def test_reasons_without_a_verdict_are_counted_and_the_option_all_shows_each(testbed, tmp_path):
    folder = tiny_run(tmp_path / "tiny").path
    (one,) = reevaluate(folder)
    left = [verdict for verdict in one.evaluation.verdicts if verdict.status == "not evaluated"]
    counts = Counter(verdict.reason for verdict in left)
    out = testbed("evaluate", folder)[1]
    folded = [line.strip().split(maxsplit=1) for line in out.partition("(--all shows each)")[2].splitlines()]
    shown = {
        words[1]: int(words[0]) for words in folded if len(words) == 2 and words[0].isdigit() and words[1] in counts
    }
    assert shown == dict(counts.most_common(MAX_REASONS))
    assert f"{len(left)}  not evaluated (--all shows each)" in out
    every = testbed("evaluate", folder, "--all")[1]
    assert sum(line.startswith("not evaluated") for line in every.splitlines()) == len(left)


def test_an_evaluation_shows_failures_and_errors_before_passes(testbed, tmp_path):
    out = testbed("evaluate", h200_run(tmp_path / "run").path)[1].splitlines()
    found = [line.split()[0] for line in out if line.split()[:1] and line.split()[0] in ("error", "fail", "pass")]
    assert found == sorted(found, key=STATUSES.index)
    assert {"fail", "pass"} <= set(found)


def test_the_json_of_a_comparison_has_its_changes(testbed, tmp_path, worse_run_folder):
    out = testbed("compare", h200_run(tmp_path / "first").path, worse_run_folder.path, "--json")[1]
    assert json.loads(out)["verdicts"]
