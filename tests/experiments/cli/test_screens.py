"""What people see: the commands on real terminals of several widths, compared with the stored screens.

TESTBED_RENEW=1 python -m pytest tests/experiments/cli/test_screens.py writes them again. Fakes: predictions, the site.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.cli.app import main
from experiments.cli.output import console, show_checks
from experiments.cli.parsing.commands import COMMANDS
from experiments.cli.tables.verdicts import show_runs
from experiments.pipeline import FinishedRun
from experiments.prediction import service
from experiments.report import write_report
from experiments.results.run_folder import RunFolder
from experiments.results.schema import Memory, Progress
from experiments.runners.progress import RowState, table, view_on
from experiments.suites.suite import suite_named
from provision import clock
from provision.checks import Check
from provision.leasing import account
from provision.sites import base
from tests.support.fake_site import HOUR, NOW, FakeClock, FakeSite, hosts_of
from tests.support.predictions import Predictor, stated
from tests.support.reports import SUITE, h200_run, make_results, make_run, tiny_run, with_predictions, write_run
from tests.support.sshd import new_key
from tests.support.terminal import printed, screen

SCREENS = Path(__file__).parent / "screens"
WIDTHS = (80, 120, 160)
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
    "compare-unlike": "compare TINY H200",
    "status": "status",
    "slots": "slots --start 2026-11-22T10:00Z --limit 2",
    "lease-dry-run": "lease --key KEY --name another --start 2026-11-23T10:00Z --dry-run",
    "error": "run single_gpu_blip2 --row nosuch",
    "help": "--help",
    **{f"help-{name}": f"{name} --help" for name in COMMANDS},
}
HELP = [name for name in COMMAND_LINES if name.startswith("help")]


class LeasedSite(FakeSite):
    def user(self):
        return "c@c"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The runs that the screens are of, by the word in their command line."""
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
def machine(monkeypatch, tmp_path):
    """A site of two nodes, and predictions as stated; the folder of its journal and key."""
    site = LeasedSite(hosts_of(2, gpu_model="NVIDIA A100 80GB PCIe", gpu_memory_gib=80.0, su_per_hour=8.0))
    monkeypatch.setattr(base, "connect_to", lambda *_: site)
    monkeypatch.setattr(account, "connect_to", lambda *_: site)
    monkeypatch.setattr(clock, "Clock", FakeClock)
    monkeypatch.setattr(service, "predict", Predictor(stated))
    monkeypatch.setenv("TESTBED_LEDGER", str(tmp_path / "journal"))
    monkeypatch.setenv("TZ", "Europe/Helsinki")
    new_key(tmp_path / "key")
    return tmp_path


def _check(name: str, width: int, text: str) -> None:
    path = SCREENS / f"{name}.{width}.txt"
    if os.environ.get("TESTBED_RENEW"):
        SCREENS.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def _shown(run: Callable[[], object], width: int) -> str:
    return screen(printed(run, width), width)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [name for name in COMMAND_LINES if name not in HELP])
def test_a_command_shows_the_stored_screen(name, width, folders, machine, monkeypatch):
    tmp_path = machine
    monkeypatch.chdir(tmp_path)
    words = [str({**folders, "KEY": "key"}.get(word, word)) for word in COMMAND_LINES[name].split()]
    if name == "status":
        for lease, start in (("llm_a", "2026-11-21T13:00Z"), ("llm_b", "2026-11-22T12:00Z")):
            flags = ["--key", str(tmp_path / "key"), "--hours", "3", "--no-wait", "--yes"]
            assert main(["lease", "--name", lease, "--start", start, *flags]) == 0
        monkeypatch.setattr(FakeClock, "now", lambda _: NOW + 2.5 * HOUR)
    _check(name, width, _shown(lambda: main(words), width))


@pytest.mark.parametrize("width", WIDTHS)
def test_every_help_shows_the_stored_screen(width):
    shown = [_shown(lambda line=COMMAND_LINES[name]: main(line.split()), width) for name in HELP]
    _check("help", width, "\n".join(shown))
    assert max(map(len, "\n".join(shown).splitlines())) <= width


def _run(folder: RunFolder) -> None:
    """Show the events of a run without a GPU."""
    output = console()
    view = view_on(output)
    run, suite = folder.read_run(), suite_named(SUITE)
    view.says(f"{folder.path}: {suite.title}, {len(run.rows)} row(s), size tiny for a100_80gb, on 2 x AMD EPYC 7763")
    service.predict_rows(suite, run, RunFolder(folder.path), view)
    results = list(folder.results().values())
    for result in results[:3]:
        view.starts(result.spec, "no result yet")
        view.ends(result.spec, result)
    report = write_report(folder)
    show_runs([FinishedRun(folder.path, report.page, report.evaluation)], output)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_run_shows_the_stored_screen(width, machine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = with_predictions(tiny_run(Path("results/tiny")))
    _check("run", width, _shown(lambda: _run(folder), width))


@pytest.mark.parametrize("width", WIDTHS)
def test_running_rows_show_the_stored_screen(width):
    run = make_run()
    specs = [run.spec(suite_named(SUITE), row) for row in ("xxl-activation-checkpointing", "xxl-sgd", "xxl-lora")]
    at = Progress(
        phase="optimizer step",
        step=2,
        micro_steps=9,
        planned_micro_steps=24,
        allocated_gib=0.031,
        memory=Memory(peak_gib=38.5),
        left_s=75.0,
    )
    waits = "queued (Resources: downloading facebook/opt-6.7b, 3.1 of 12.4 GB)"
    states = [
        RowState(specs[0], 3723.0, at),
        RowState(specs[1], 9.0, None, "ending"),
        RowState(specs[2], 0.0, None, waits),
    ]
    _check("progress", width, _shown(lambda: console().print(table(states, 3, 15, 600.0)), width))


@pytest.mark.parametrize("width", WIDTHS)
def test_checks_show_the_stored_screen(width):
    checks = [
        Check("local tools", "ok", "ssh, ssh-keygen"),
        Check("compiler", "failed", "no C++ compiler; install it (apt install g++)", ("testbed predict",)),
        Check("GPU", "warning", "no GPU: rows run with tiny models, and predictions are for full size", ("full size",)),
    ]
    _check("doctor", width, _shown(lambda: show_checks(checks), width))


def test_colors_are_for_terminals_that_want_them(folders, machine):
    line = ["evaluate", str(folders["H200"])]
    assert "\x1b[31m" in printed(lambda: main(line), 80)
    assert "\x1b[31m" not in printed(lambda: main(line), 80, {"NO_COLOR": "1"})
