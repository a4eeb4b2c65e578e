"""Hostile files of other people: no command blocks at a FIFO, reads an endless device, or prints control characters."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.cli.app import main
from experiments.report.write import changed_files, folder_checksums
from experiments.results.gpu_load import read_samples
from experiments.system.files import CODE_FOLDER, write_atomically
from provision import files
from provision.errors import BadJournal
from provision.leasing.journal import Journal
from tests.support.results.evidence import EVIDENCE
from tests.support.services.terminal import terminal_output

pytestmark = pytest.mark.timeout(120)
STORED = EVIDENCE / "single_gpu_blip2-a100_80gb-full-verdict"
CONFIG = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 64, "vocab_size": 100, "n_positions": 64}
READERS = ("evaluate RUN", "report RUN", "bundle RUN", "compare STORED RUN", "history record RUN --database h.db")
BLAME = "blame single_gpu_blip2/xxl --good @ --bad current"
REJECTED_FILES = ("run.json", "results.jsonl", "single_gpu_blip2/xxl/result.json")
IGNORED_FILES = ("SHA256SUMS", "report.html", "report.html.part", "single_gpu_blip2/xxl/telemetry.csv")


@pytest.fixture
def stored_run(tmp_path, monkeypatch, machine):
    """Copy a stored run into the current folder, as if another person had handed it in."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(STORED, tmp_path / "run")
    return tmp_path / "run"


def _replace(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "fifo" else path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["fifo", "device"])
@pytest.mark.parametrize("name", REJECTED_FILES)
@pytest.mark.parametrize("line", READERS)
def test_a_fifo_or_device_in_a_run_is_rejected_in_one_line(stored_run, capsys, line, name, kind):
    _replace(stored_run / name, kind)
    words = [word.replace("RUN", str(stored_run)).replace("STORED", str(STORED)) for word in line.split()]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"{stored_run / name}: cannot be read (Not a regular file)" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("kind", ["fifo", "device"])
@pytest.mark.parametrize("name", IGNORED_FILES)
def test_a_report_is_written_although_the_folder_has_a_fifo_or_device(stored_run, capsys, name, kind):
    _replace(stored_run / name, kind)
    assert main(["report", str(stored_run)]) == 0, capsys.readouterr().err
    assert (stored_run / "report.html").stat().st_size > 10_000


def test_a_report_does_not_wait_for_a_fifo_in_another_run_of_the_folder(stored_run):
    shutil.copytree(stored_run, stored_run.with_name("other"))
    _replace(stored_run.with_name("other") / "verdict.json", "fifo")
    assert main(["report", str(stored_run)]) == 0


def test_a_line_break_in_a_file_name_makes_no_second_line(stored_run, capsys):
    Path("a\nb.yaml").write_text("suite: a")
    assert main(["check", "a\nb.yaml"]) == 2
    assert capsys.readouterr().err.startswith("a\\nb.yaml:1: ")


@pytest.mark.parametrize("line", ["check @", "predict -- python @", "grade @", BLAME])
def test_a_fifo_in_the_command_line_is_rejected(stored_run, capsys, line):
    os.mkfifo("fifo.zip")
    assert main(line.replace("@", "fifo.zip").split()) in (1, 2)
    assert "fifo.zip" in "".join(capsys.readouterr())


def test_a_report_does_not_write_through_a_link_to_a_file_outside(stored_run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (stored_run / "report.html.part").symlink_to(tmp_path / "mine.txt")
    assert main(["report", str(stored_run)]) == 0
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (stored_run / "report.html").is_symlink()


def test_a_write_that_fails_leaves_the_old_file_and_no_partial_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        write_atomically(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("name", ["two\nlines.txt", "back\\slash.txt", os.fsdecode(b"tab\xe9.txt"), "sp ace.txt"])
def test_the_program_sha256sum_and_the_command_evaluate_can_read_checksums_of_any_file_name(stored_run, name):
    (stored_run / name).write_text("text")
    write_atomically(stored_run / "SHA256SUMS", folder_checksums(stored_run), errors="surrogateescape")
    assert changed_files(stored_run) == ()
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=stored_run, check=True)
    (stored_run / name).write_text("other")
    assert changed_files(stored_run) == (name,)


def test_checksums_follow_no_link_out_of_the_folder(stored_run, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (stored_run / "link").symlink_to(tmp_path / "secret")
    assert "link" not in folder_checksums(stored_run)


def test_checksums_leave_out_partial_files_that_a_killed_process_has_left_behind(stored_run, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    if not (child := os.fork()):
        write_atomically(stored_run / "verdict.json", "text")
        os._exit(0)
    os.waitpid(child, 0)
    (partial,) = stored_run.glob("verdict.json.*")
    names = [line.split("  ")[1] for line in folder_checksums(stored_run).splitlines()]
    assert "verdict.json" in names
    assert partial.name not in names


def test_a_file_of_a_terabyte_is_rejected_before_it_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(OSError, match="Larger than 256 MiB"):
        files.read_bytes(path)


@pytest.mark.parametrize("content", [b"[" * 300_000, b'{"model_type":' + b"[" * 300_000])
def test_a_deeply_nested_config_is_rejected_in_one_line(tmp_path, capsys, content):
    (tmp_path / "config.json").write_bytes(content)
    code = main(["predict", "--model", str(tmp_path / "config.json"), "--card", "a100_80gb", "--loop", "lightning"])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert "not a JSON file" in error


def test_a_byte_order_mark_is_not_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8-sig")
    assert json.loads(files.read_text(tmp_path / "config.json")) == CONFIG


@pytest.mark.parametrize("text", [f't_s,phase\n1.0,"{"x" * 200_000}"\n', "t_s\n\0\n", ""])
def test_invalid_telemetry_gives_no_samples(tmp_path, text):
    (tmp_path / "telemetry.csv").write_text(text)
    assert read_samples(tmp_path / "telemetry.csv") == []


def test_a_journal_that_is_a_fifo_or_too_deeply_nested_is_named(tmp_path):
    file = tmp_path / "ledger.jsonl"
    os.mkfifo(file)
    with pytest.raises(BadJournal, match="Not a regular file"):
        Journal(tmp_path).entries()
    file.unlink()
    file.write_text("[" * 300_000)
    with pytest.raises(BadJournal, match="line 1 is damaged"):
        Journal(tmp_path).entries()


@pytest.mark.parametrize("character", ["\x1b", "\x9b", "\u202e", "\u2066", "\u2028", "\x07", os.fsdecode(b"\xff")])
def test_characters_that_control_a_terminal_are_shown_as_escapes(stored_run, capsys, character):
    assert main(["evaluate", f"no{character}such"]) == 2
    error = capsys.readouterr().err
    assert character not in error
    assert f"no{files.printable(character)}such" in error


@pytest.mark.parametrize("character", ["\x1b", "\x9b", "\u202e", "\u2066", "\u2028", "\x07"])
def test_results_that_would_control_a_terminal_or_change_a_page_are_shown_with_escapes(stored_run, capsys, character):
    stored = json.loads((stored_run / "run.json").read_text())
    (stored_run / "run.json").write_text(json.dumps({**stored, "host": f"{character}]0;title", "command": character}))
    assert main(["evaluate", str(stored_run), "--all"]) == 0
    assert main(["report", str(stored_run)]) == 0
    shown = "".join(capsys.readouterr()) + (stored_run / "report.html").read_text()
    assert character not in shown


@pytest.mark.parametrize(
    "change",
    [
        {"rows": ["../../../secret"]},
        {"rows": ["/etc"]},
        {"rows": ["a\0b"]},
        {"rows": ["xxl"] * 100_000},
        {"suite": "../.."},
        {"suite": "a/b"},
        {"recipe_version": 10**400},
        {"gpus_per_node": 10**30},
        {"gpus_per_node": -1},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("line", ["evaluate RUN", "report RUN", "bundle RUN", "logs xxl RUN"])
def test_a_run_whose_names_are_paths_or_that_has_too_many_rows_or_invalid_numbers_is_rejected(
    stored_run, capsys, line, change
):
    stored = json.loads((stored_run / "run.json").read_text())
    (stored_run / "run.json").write_text(json.dumps({**stored, **change}))
    assert main(line.replace("RUN", str(stored_run)).split()) == 2
    error = capsys.readouterr().err
    assert f"{stored_run / 'run.json'}: not a run of schema version 1" in error
    assert error.count("\n") == 1
    assert len(error) < 1000


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_a_log_that_is_not_a_regular_file_is_not_printed(stored_run, capsys, kind):
    _replace(stored_run / "single_gpu_blip2" / "xxl" / "log.txt", kind)
    stored = json.loads((stored_run / "run.json").read_text())
    (stored_run / "run.json").write_text(json.dumps({**stored, "site": "local"}))
    assert main(["logs", "xxl", str(stored_run)]) == 2
    assert "no log.txt" in capsys.readouterr().err


def test_a_log_is_printed_with_escapes_on_a_terminal_and_unchanged_in_a_pipe(stored_run):
    log = stored_run / "single_gpu_blip2" / "xxl" / "log.txt"
    log.parent.mkdir(parents=True)
    content = b"one\x1b]0;title\x07\x1b[2J\n\x1b[31mred\x1b[0m\r50%\r100%\n\xff"
    log.write_bytes(content)
    stored = json.loads((stored_run / "run.json").read_text())
    (stored_run / "run.json").write_text(json.dumps({**stored, "site": "local"}))
    shown = terminal_output(lambda: main(["logs", "xxl", str(stored_run)]), 80)
    assert "\x1b" not in shown
    assert "\\x1b]0;title\\x07\\x1b[2J" in shown
    assert [line.strip() for line in shown.splitlines()][1:4] == ["red", "50%", "100%"]
    assert _command("logs", "xxl", str(stored_run), stdout=subprocess.PIPE).stdout == content


def _command(*words: str, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    environment = {**os.environ, "PYTHONPATH": str(CODE_FOLDER), **options.pop("env", {})}
    line = [sys.executable, "-m", "experiments", *words]
    return subprocess.run(line, env=environment, stderr=subprocess.PIPE, timeout=100, **options)


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize("line", ["compare RUN RUN", "report RUN", "list single_gpu_blip2"])
def test_every_text_can_be_written_to_a_terminal_or_file_that_does_not_support_utf_8(stored_run, line):
    done = _command(*line.replace("RUN", "run").split(), env=ASCII, cwd=stored_run.parent, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()


@pytest.mark.parametrize("line", ["list", "list --json", "schema"])
def test_output_that_cannot_be_written_is_reported_in_one_line(line):
    with open("/dev/full", "wb") as full:
        done = _command(*line.split(), stdout=full)
    assert done.returncode == 3
    assert done.stderr == b"testbed: the output or a file: No space left on device\n"


def test_a_closed_pipe_gives_the_exit_code_of_sigpipe_and_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = _command("schema", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_closed_standard_streams_are_not_an_error():
    words = [sys.executable, "-m", "experiments", "list"]
    line = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words]
    assert subprocess.run(line, env={**os.environ, "PYTHONPATH": str(CODE_FOLDER)}, timeout=100).returncode == 0
