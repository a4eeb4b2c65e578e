"""The output of commands on real terminals of several widths, compared with stored output.

TESTBED_RENEW=1 python -m pytest tests/experiments/cli/test_screens.py writes them again; machines/ has the screens of
commands that need a node, a GPU or a package index. Fakes: predictions, the site.
"""

import re
from functools import partial
from pathlib import Path

import pytest

from experiments.cli.app import main
from experiments.cli.output import console, show_checks
from experiments.cli.parsing.commands import COMMANDS
from experiments.cli.tables.verdicts import show_runs
from experiments.pipeline import FinishedRun
from experiments.prediction import service
from experiments.report.write import write_report
from experiments.results.run_folder import RunFolder
from experiments.results.schema import Memory, Progress
from experiments.runners import monitor, targets
from experiments.runners.monitor import MonitoredGpu, MonitoredRow, Observation
from experiments.runners.progress import RowState, progress_table, view_on
from experiments.runners.targets import MonitorTarget
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import TEMPLATE_FILE, suite_named
from provision import clock
from provision.checks import Check
from provision.leasing import account
from provision.sites import base, demo
from provision.ssh.shell import LocalShell
from tests.experiments.cli.machines.test_machine_screens import MACHINE_LINES
from tests.support.leasing.fake_site import HOUR, NOW, FakeClock, FakeSite, hosts_of
from tests.support.results.evidence import EVIDENCE
from tests.support.results.handwritten import (
    SUITE,
    h200_run,
    make_results,
    make_run,
    tiny_run,
    with_predictions,
    write_run,
)
from tests.support.runners.fake_predictions import Predictor, stated
from tests.support.runners.fake_traces import FakeTracer
from tests.support.services.screens import SCREENS, WIDTHS, check_screen, session, shown
from tests.support.services.sshd import new_key
from tests.support.services.terminal import terminal_output

COMMAND_LINES = {
    "list": "list",
    "list-suite": f"list {SUITE}",
    "cards": "cards",
    "predict": f"predict {SUITE} --card a100_80gb",
    "evaluate": "evaluate H200",
    "evaluate-miniature": "evaluate TINY",
    "evaluate-all": "evaluate TINY --all",
    "evaluate-class": "evaluate CLASS",
    "compare": "compare H200 CHANGED",
    "compare-other-size": "compare TINY H200",
    "compare-same-run": "compare H200 H200",
    "evaluate-together": "evaluate H200 CHANGED",
    "models": "models",
    "predict-cards": "predict --model open-llama-7b --loop lightning --card all --batch 1,4",
    "predict-batches": "predict --model open-llama-7b --loop lightning --card a100_80gb --batch 1,4",
    "fit": "fit single_gpu_blip2/xxl --card a100_80gb",
    "fit-cards": "fit --model open-llama-7b --loop lightning --card a100_80gb,h200_141gb --batch 4,16",
    "fit-pairs": "fit --model open-llama-13b --loop lightning --card a100_40gb --batch 16",
    "check": "check my_lab.yaml",
    "check-mistakes": "check mistakes.yaml",
    "list-own": "list --suite-file my_lab.yaml",
    "report": "report H200",
    "semester-dry-run": "semester --dry-run",
    "logs": "logs xxl-sgd TINY",
    "top": "top --once",
    "schema": "schema run",
    "status": "status",
    "slots": "slots --start 2026-11-22T10:00Z --limit 2",
    "lease-dry-run": "lease --key KEY --name another --start 2026-11-23T10:00Z --dry-run",
    "help": "--help",
    **{f"help-{name}": f"{name} --help" for name in COMMANDS},
}
HELP = [name for name in COMMAND_LINES if name.startswith("help")]
DEMO = (
    "doctor --site demo",
    "slots --site demo --hours 3 --limit 3 --calendar 2",
    "lease --site demo --dry-run",
    "reproduce --site demo --dry-run",
    "lease --site demo --no-wait --yes",
    "status",
    "release --yes",
    "lease --site demo --yes",
    "status",
    "extend --by 1h --yes",
    "orphans --site demo",
    "release --dry-run",
    "release --yes",
    "status --since 2026-11-01",
)
MISTAKES = (
    "run single_gpu_blip2 --row nosuch",
    "run single_gpu_blip --size tiny",
    "predict --precision bf16",
    "predict --model open-llama-7b --card a100",
    "fit --model open-llama-7b --loop lightning --card a100_80gb --batch 0",
    "evaluate nowhere",
    "compare H200 my_lab.yaml",
    "check nowhere.yaml",
    "schema results",
    "blame single_gpu_blip2/xxl-sgd --good nowhere --bad current",
    "blame single_gpu_blip2/xxl-sgd --good current --bad current",
    "logs nosuch TINY",
    "slots --hours soon",
)
SEMESTER = (
    "history record H200 CHANGED",
    "history",
    f"history {SUITE}/xxl-sgd",
    "history --all",
    "bundle EVIDENCE --output alice.zip",
    "grade alice.zip",
    "bundle H200 --output bob.zip",
    "grade bob.zip",
)
NOT_SCREENS = {"run": "test_a_run_shows_the_stored_screen has its events, without the time that rows take"}
"""Commands whose screen has no command line here, and why."""


PROGRESS = Progress(
    phase="optimizer step",
    step=2,
    micro_steps=9,
    planned_micro_steps=24,
    allocated_gib=0.031,
    memory=Memory(peak_gib=38.5),
    left_s=75.0,
)
RUN_ID = "multi_gpu_openllama-a100_80gb-full-verdict-current-random"
OBSERVED = Observation(
    gpus=tuple(
        MonitoredGpu(
            "llm_cc-node-1", gpu, "NVIDIA A100-SXM4-80GB", 97.0, 71.3, 80.0, 61.0, ("multi_gpu_openllama/fsdp",)
        )
        for gpu in range(2)
    ),
    rows=(
        MonitoredRow(f"{RUN_ID}/multi_gpu_openllama/fsdp", "RUNNING", "", PROGRESS),
        MonitoredRow(f"{RUN_ID}/multi_gpu_openllama/deepspeed-offload", "PENDING", "Resources"),
    ),
    unreachable=("llm_cc-node-2: not reached",),
)


class LeasedSite(FakeSite):
    def user(self):
        return "c@c"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The runs that the screens show, by the word that stands for them in a command line."""
    root = tmp_path_factory.mktemp("runs")
    h200 = h200_run(root / "class" / "alice")
    tiny = with_predictions(tiny_run(root / "class" / "bob"))
    later = make_run(run_id="2026-07-08-single-h200", started_at="2026-07-08T09:00:00Z", git_commit="feed" * 10)
    results = make_results(later)
    results["xxl-sgd"] = results["xxl"].model_copy(
        update={"spec": results["xxl-sgd"].spec, "fingerprint": results["xxl-sgd"].fingerprint}
    )
    changed = write_run(root / "changed", later, results)
    for folder in (h200, tiny):
        write_report(folder)
    (tiny.path / SUITE / "xxl-sgd" / "log.txt").write_text("edited\n")
    return {"H200": h200.path, "TINY": tiny.path, "CHANGED": changed.path, "CLASS": root / "class"}


@pytest.fixture
def relative_folders(folders, machine):
    """The same runs, under relative paths that do not change between test runs."""
    (machine / "class").symlink_to(folders["CLASS"])
    (machine / "changed").symlink_to(folders["CHANGED"])
    (machine / "evidence").symlink_to(EVIDENCE / "single_gpu_litgpt-a100_80gb-full-verdict")
    return {
        "H200": "class/alice",
        "TINY": "class/bob",
        "CHANGED": "changed",
        "CLASS": "class",
        "EVIDENCE": "evidence",
    }


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Set up a site of two nodes and fake predictions; return the folder of its journal and key."""
    site = LeasedSite(hosts_of(2, gpu_model="NVIDIA A100 80GB PCIe", gpu_memory_gib=80.0, su_per_hour=8.0))
    monkeypatch.setattr(base, "connect_to", lambda *_: site)
    monkeypatch.setattr(account, "connect_to", lambda *_: site)
    monkeypatch.setattr(clock, "Clock", FakeClock)
    monkeypatch.setattr(service, "predict", Predictor(stated))
    monkeypatch.setenv("TESTBED_LEDGER", str(tmp_path / "journal"))
    monkeypatch.setenv("TZ", "Europe/Helsinki")
    monkeypatch.setattr(targets, "monitor_target", lambda *_: MonitorTarget(LocalShell(), str(tmp_path)))
    monkeypatch.setattr(monitor, "observe", lambda _: OBSERVED)
    new_key(tmp_path / "key")
    (tmp_path / "my_lab.yaml").write_text(TEMPLATE_FILE.read_text())
    wrong = TEMPLATE_FILE.read_text().replace("  workers: 0\n", "").replace("optimizer: sgd", "optimizr: sgd")
    (tmp_path / "mistakes.yaml").write_text(wrong.replace("batch_size: 8", "batch_size: -8"))
    return tmp_path


def needed_gib(spec: RowSpec) -> float:
    """Return a fake memory need: larger models and batches increase it, and each change of the training lowers it."""
    own = spec.settings
    state = {"adamw": 3.0, "adam_8bit": 1.5, "sgd": 1.0, "adamw_cpu": 1.0, "deepspeed_cpu": 0.5}[own.optimizer]
    weights = spec.base_model.parameters * (2 if own.precision.endswith("-true") and "16" in own.precision else 4)
    trained = 0.1 if own.lora else 1.0 + state
    sample = {False: 2.0, "selective": 1.0, True: 0.5}[own.activation_checkpointing] * (not own.activation_offload)
    return weights / 2**30 * (1 + trained) / own.devices + sample * own.batch_size


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [name for name in COMMAND_LINES if name not in HELP])
def test_a_command_shows_the_stored_screen(name, width, relative_folders, machine, monkeypatch):
    tmp_path = machine
    monkeypatch.chdir(tmp_path)
    words = [{**relative_folders, "KEY": "key"}.get(word, word) for word in COMMAND_LINES[name].split()]
    if name.startswith(("fit", "predict-")):
        monkeypatch.setattr(service, "predict", Predictor(needed_gib, params_gib=5.0))
        FakeTracer(needed_gib).install(monkeypatch)
    if name == "status":
        for lease, start in (("llm_a", "2026-11-21T13:00Z"), ("llm_b", "2026-11-22T12:00Z")):
            flags = ["--key", str(tmp_path / "key"), "--hours", "3", "--no-wait", "--yes"]
            assert main(["lease", "--name", lease, "--start", start, *flags]) == 0
        monkeypatch.setattr(FakeClock, "now", lambda _: NOW + 2.5 * HOUR)
    check_screen(name, width, shown(lambda: main(words), width))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_demonstration_shows_the_stored_screen(width, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clock.Clock, "now", lambda _: NOW)
    monkeypatch.setattr(demo, "LONGEST_WAIT_S", 0.0)
    monkeypatch.setenv("TESTBED_LEDGER", "journal")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TZ", "Europe/Helsinki")
    text = session(DEMO, width, {})
    check_screen("demo", width, re.sub("llm-testbed-[0-9a-f]{12}", "llm-testbed-0123456789ab", text))


@pytest.mark.parametrize("width", WIDTHS)
def test_mistakes_of_the_user_show_the_stored_screen(width, relative_folders, machine, monkeypatch):
    monkeypatch.chdir(machine)
    check_screen("mistakes", width, session(MISTAKES, width, relative_folders))


@pytest.mark.parametrize("width", WIDTHS)
def test_history_and_grading_show_the_stored_screen(width, relative_folders, machine, monkeypatch):
    monkeypatch.chdir(machine)
    check_screen("semester", width, session(SEMESTER, width, relative_folders))


def test_every_command_has_a_stored_screen():
    lines = (*COMMAND_LINES.values(), *DEMO, *SEMESTER, *MACHINE_LINES)
    commands = {line.split()[0] for line in lines if not line.endswith("--help")}
    assert [name for name in COMMANDS if name not in commands and name not in NOT_SCREENS] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_every_help_shows_the_stored_screen(width):
    text = "\n".join(shown(partial(main, COMMAND_LINES[name].split()), width) for name in HELP)
    check_screen("help", width, text)
    assert max(map(len, text.splitlines())) <= width


def _show_run(folder: RunFolder) -> None:
    """Show the events of a run without a GPU."""
    output = console()
    view = view_on(output)
    run, suite = folder.read_run(), suite_named(SUITE)
    view.print_line(
        f"{folder.path}: {suite.title}, {len(run.rows)} rows, size tiny for a100_80gb, on 2 x AMD EPYC 7763"
    )
    service.predict_rows(suite, run, RunFolder(folder.path), view)
    results = list(folder.results().values())
    for result in results[:3]:
        view.report_start(result.spec, "no result yet")
        view.report_end(result.spec, result)
    report = write_report(folder)
    show_runs([FinishedRun(folder.path, report.page, report.evaluation)], output)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_run_shows_the_stored_screen(width, machine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = with_predictions(tiny_run(Path("results/tiny")))
    check_screen("run", width, shown(lambda: _show_run(folder), width))


@pytest.mark.parametrize("width", WIDTHS)
def test_running_rows_show_the_stored_screen(width):
    run = make_run()
    specs = [run.spec(suite_named(SUITE), row) for row in ("xxl-activation-checkpointing", "xxl-sgd", "xxl-lora")]
    waits = "queued (Resources: downloading facebook/opt-6.7b, 3.1 of 12.4 GB)"
    states = [
        RowState(specs[0], 3723.0, PROGRESS),
        RowState(specs[1], 9.0, None, "ending"),
        RowState(specs[2], 0.0, None, waits),
    ]
    check_screen("progress", width, shown(lambda: console().print(progress_table(states, 3, 15, 600.0)), width))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_checks_of_doctor_show_the_stored_screen(width):
    checks = [
        Check("local tools", "ok", "ssh, ssh-keygen"),
        Check("compiler", "failed", "no C++ compiler; install it (apt install g++)", ("testbed predict",)),
        Check("GPU", "warning", "no GPU: rows run with tiny models, and predictions are for full size", ("full size",)),
    ]
    check_screen("doctor", width, shown(lambda: show_checks(checks), width))


@pytest.mark.parametrize("path", sorted(SCREENS.glob("*.txt")), ids=lambda path: path.stem)
def test_nothing_on_a_stored_screen_is_cut(path):
    assert "…" not in path.read_text()


def test_colors_are_printed_on_a_terminal_unless_the_variable_no_color_is_set(folders, machine):
    line = ["evaluate", str(folders["H200"])]
    assert "\x1b[31m" in terminal_output(lambda: main(line), 80)
    assert "\x1b[31m" not in terminal_output(lambda: main(line), 80, {"NO_COLOR": "1"})
