"""Pack the folder of a run into its compact form, and unpack it."""

import json
from pathlib import Path

import pytest

from experiments.evidence.pack import main, pack, unpack
from experiments.report.write import write_report
from experiments.results.run_folder import RunFolder, row_path
from tests.support.results.evidence import EVIDENCE, RUNS
from tests.support.results.handwritten import h200_run


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_packing_keeps_every_result_and_no_other_file(tmp_path: Path) -> None:
    folder = h200_run(tmp_path / "run")
    pack(folder.path, tmp_path / "packed")
    telemetry = {f"telemetry/{row}.csv" for row in folder.results()}
    assert set(files(tmp_path / "packed")) == {"run.json", "results.jsonl", *telemetry}
    assert RunFolder(tmp_path / "packed").results() == folder.results()
    lines = (tmp_path / "packed" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["spec"]["row"] for line in lines] == list(folder.results())


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: path.name)
def test_unpacked_and_packed_again_evidence_is_the_same(folder: Path, tmp_path: Path) -> None:
    unpack(folder, tmp_path / "run")
    pack(tmp_path / "run", tmp_path / "again")
    assert files(tmp_path / "again") == files(folder)
    assert RunFolder(tmp_path / "run").results() == RunFolder(folder).results()


def test_a_report_can_be_written_from_packed_and_from_unpacked_evidence(tmp_path: Path) -> None:
    folder = EVIDENCE / "single_gpu_blip2-a100_80gb-full-as-taught"
    pack_again, run = tmp_path / "compact" / "run", tmp_path / "full" / "run"
    unpack(folder, run)
    pack(run, pack_again)
    statements = [json.loads((written(one) / "report.json").read_text())["statements"] for one in (pack_again, run)]
    assert statements[0] == statements[1] != []


def written(folder: Path) -> Path:
    write_report(RunFolder(folder))
    return folder


def test_a_result_in_the_folder_of_its_row_is_preferred_to_the_packed_result(tmp_path: Path) -> None:
    folder = h200_run(tmp_path / "run")
    pack(folder.path, tmp_path / "packed")
    (tmp_path / "packed" / "results.jsonl").rename(folder.path / "results.jsonl")
    before = folder.results()
    path = folder.path / row_path(folder.read_run().suite, "reduced-batch") / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"elapsed_s": 7.5}))
    after = folder.results()
    assert after.pop("reduced-batch").elapsed_s == 7.5 != before.pop("reduced-batch").elapsed_s
    assert after == before != {}


def test_a_line_of_packed_results_without_a_valid_result_is_named(tmp_path: Path) -> None:
    unpack(RUNS[0], tmp_path / "run")
    pack(tmp_path / "run", tmp_path / "packed")
    with (tmp_path / "packed" / "results.jsonl").open("a") as lines:
        lines.write("{}\n")
    count = len(RunFolder(RUNS[0]).results())
    with pytest.raises(ValueError, match=rf"results\.jsonl, line {count + 1}: not a result of schema version 1"):
        RunFolder(tmp_path / "packed").results()


def test_a_folder_without_a_run_is_rejected_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path), str(tmp_path / "packed")])
    assert end.value.code == 2
    assert "not a run's folder" in capsys.readouterr().err
