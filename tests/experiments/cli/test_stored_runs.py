"""`testbed evaluate`, `report` and `compare` on finished runs: output, exit codes and files."""

import hashlib
import json
import re
import zipfile

import pytest

from experiments.prediction.as_result import evaluate_run
from experiments.report import write
from tests.support.results.evidence import EVIDENCE
from tests.support.runners.fake_runner import SUITE


@pytest.mark.parametrize(("outcome", "expected"), [("fits", 0), ("oom", 1), ("error", 3)])
def test_the_exit_code_depends_on_the_verdicts(testbed, monkeypatch, finished_folder, outcome, expected):
    result = finished_folder / SUITE / "reduced-batch" / "result.json"
    data = json.loads(result.read_text())
    data["outcome"] = outcome
    data["spec"]["size"] = "full"
    data["device"]["kind"] = "cuda"
    result.write_text(json.dumps(data))
    (finished_folder / SUITE / "xxl" / "result.json").unlink()
    (finished_folder / "SHA256SUMS").unlink()
    assert testbed("evaluate", finished_folder)[0] == expected


def test_the_command_evaluate_can_print_the_verdicts_as_json(testbed, finished_folder):
    code, out, _ = testbed("evaluate", finished_folder, "--json")
    (evaluated,) = json.loads(out)
    assert code == 0
    assert evaluated["evaluation"]["run"]["rows"] == ["reduced-batch", "xxl"]
    assert evaluated["changes"] == []


def test_several_runs_can_be_evaluated_together(testbed):
    one, two = (EVIDENCE / f"slurm_hf_trainer-a100_40gb-full-verdict{end}" for end in ("", "-2gpus"))
    statuses = []
    for folders in ((one,), (two,), (one, two), (two, one)):
        code, out, _ = testbed("evaluate", *folders, "--json")
        (evaluated,) = json.loads(out)
        statuses.append({verdict["id"]: verdict["status"] for verdict in evaluated["evaluation"]["verdicts"]})
        assert code == 0
    assert statuses[0]["claim/ddp-copies-the-model"] == statuses[1]["claim/ddp-copies-the-model"] == "not evaluated"
    assert statuses[2]["claim/ddp-copies-the-model"] == "pass"
    assert statuses[2] == statuses[3]
    assert statuses[2].keys() == statuses[0].keys() | statuses[1].keys()


def test_runs_of_different_cards_are_not_evaluated_together(testbed):
    folders = [EVIDENCE / f"slurm_hf_trainer-{end}" for end in ("a100_40gb-full-verdict", "v100_32gb-without-gpu")]
    code, _, err = testbed("evaluate", *folders)
    assert code == 2
    assert "v100_32gb" in err
    assert len(err.splitlines()) == 1


def test_a_folder_without_a_run_cannot_be_evaluated_reported_or_compared(testbed, tmp_path):
    for arguments in (("evaluate", tmp_path), ("report", tmp_path), ("compare", tmp_path, tmp_path)):
        code, _, err = testbed(*arguments)
        assert code == 2
        assert "run's folder" in err


def test_the_command_report_writes_the_report_of_a_run_again(testbed, finished_folder):
    (finished_folder / "report.html").unlink()
    assert testbed("report", finished_folder) == (0, f"{finished_folder}/report.html\n", "")
    assert (finished_folder / "report.html").is_file()


def test_two_runs_can_be_compared(testbed, finished_folder):
    code, out, _ = testbed("compare", finished_folder, finished_folder, "--json")
    assert code == 0
    assert [row["row"] for row in json.loads(out)["rows"]] == ["reduced-batch", "xxl"]
    assert (
        "Every statement has the same status in both runs." in testbed("compare", finished_folder, finished_folder)[1]
    )


def test_a_comparison_can_be_written_as_a_page(testbed, finished_folder, tmp_path):
    page = tmp_path / "changes.html"
    code, _, err = testbed("compare", finished_folder, finished_folder, "--page", page)
    assert (code, err) == (0, f"page: {page}\n")
    assert "Nothing got worse or better." in page.read_text()
    code, _, err = testbed("compare", finished_folder, finished_folder, "--page", tmp_path)
    assert code == 2
    assert len(err.splitlines()) == 1


def test_a_report_evaluates_its_run_once_and_shows_what_changed(testbed, finished_folder, monkeypatch):
    verdicts = finished_folder / "verdict.json"
    verdicts.write_text(verdicts.read_text().replace('"status": "not evaluated"', '"status": "fail"', 1))
    counted = []
    monkeypatch.setattr(write, "evaluate_run", lambda *given: counted.append(given) or evaluate_run(*given))
    code, out, err = testbed("report", finished_folder)
    assert (code, out, len(counted)) == (0, f"{finished_folder}/report.html\n", 1)
    assert "not evaluated" in err


def test_a_report_can_be_sent_as_an_archive(testbed, finished_folder):
    code, out, _ = testbed("report", finished_folder, "--zip")
    archive = finished_folder.resolve().with_name(f"{finished_folder.resolve().name}.zip")
    assert (code, out.splitlines()) == (0, [f"{finished_folder}/report.html", str(archive)])
    with zipfile.ZipFile(archive) as entries:
        names = {name.partition("/")[2] for name in entries.namelist()}
        sums = entries.read(f"{finished_folder.resolve().name}/SHA256SUMS").decode().splitlines()
        for line in sums:
            checksum, _, name = line.partition("  ")
            assert hashlib.sha256(entries.read(f"{finished_folder.resolve().name}/{name}")).hexdigest() == checksum
    links = re.findall(r'href="([^"#:]+)"', (finished_folder / "report.html").read_text())
    assert {"report.html", "verdict.json", "junit.xml", *links} <= names
    assert {line.partition("  ")[2] for line in sums} == names - {"SHA256SUMS"}
