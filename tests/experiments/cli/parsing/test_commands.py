"""The table of commands agrees with their modules, and a command line imports only the module of its command."""

import os
import subprocess
import sys
from importlib import import_module

import pytest

from experiments.cli.app import main
from experiments.cli.parsing.commands import COMMANDS, load_command
from experiments.system.files import CODE_FOLDER

SMALL = ("pydantic", "rich", "plotly", "fabric", "yaml", "importlib.metadata", "logging")
PAGES = ("jinja2", "markdown_it", "experiments.charts", "experiments.report.write", "plotly")
NETWORK = ("fabric", "paramiko", "urllib.request", "asyncio")
RESULTS = ("experiments.results.schema", "provision.models")
NARROW = 80


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_commands_has_the_name_and_help_of_each_command(name):
    command = load_command(name)
    assert command.name == name
    assert command.help.partition("\n\n")[0] == COMMANDS[name].help


@pytest.mark.parametrize("module", sorted({entry.module for entry in COMMANDS.values()}))
def test_every_command_of_a_module_is_in_the_table(module):
    registered = import_module(f"experiments.cli.{module}").app.registered_commands
    names = {one.name or one.callback.__name__ for one in registered}
    assert names == {name for name, entry in COMMANDS.items() if entry.module == module}


def test_help_shows_each_command_on_one_line_of_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(NARROW))
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, entry in COMMANDS.items():
        assert any(line.split(maxsplit=1) == [name, entry.help] for line in lines), name
    assert max(map(len, lines)) <= NARROW


@pytest.mark.parametrize("arguments", ["--help", "--cloud x run --help", "predict --help", "status"])
def test_a_command_that_computes_nothing_imports_no_large_library(arguments, tmp_path):
    loaded = _modules_after(arguments, {"TESTBED_LEDGER": str(tmp_path)})
    assert loaded & {*SMALL} == set()


def test_only_the_module_of_the_chosen_command_is_imported():
    others = {f"experiments.cli.{entry.module}" for entry in COMMANDS.values()} - {"experiments.cli.run"}
    assert _modules_after("run --help") & others == set()


@pytest.mark.parametrize("arguments", ["nope", "run --nope", "run nope --size huge"])
def test_a_wrong_command_line_imports_no_large_library(arguments):
    assert _modules_after(arguments) & {*SMALL} == set()


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        ("list", (*PAGES, *NETWORK, *RESULTS)),
        ("list single_gpu_blip2", (*PAGES, *NETWORK, *RESULTS)),
        ("list --json", (*PAGES, *NETWORK, *RESULTS)),
        ("cards", (*PAGES, *NETWORK, *RESULTS, "experiments.suites.settings")),
        ("models", (*PAGES, *NETWORK, *RESULTS, "experiments.suites.settings")),
        ("cards --json", (*PAGES, *NETWORK, *RESULTS, "rich")),
        ("schema", (*PAGES, *NETWORK, "rich")),
        ("check --template", (*PAGES, *NETWORK, *RESULTS, "rich")),
        ("check experiments/suites/labs/single_gpu_blip2.yaml", (*PAGES, *NETWORK, *RESULTS, "rich")),
        ("history --database nothing.db", (*PAGES, *NETWORK)),
        ("logs row nothing", (*PAGES, *NETWORK, "rich")),
    ],
)
def test_a_command_imports_only_what_it_needs(arguments, unneeded):
    assert _modules_after(arguments) & {*unneeded} == set()


def test_the_shell_completes_commands_options_and_choices():
    assert _completions("testbed re") == {"report", "reproduce", "release"}
    assert _completions("testbed predict --prec") == {"--precision"}
    assert _completions("testbed run --size t") == {"tiny"}


def _modules_after(arguments: str, environment: dict[str, str] | None = None) -> set[str]:
    code = f"import sys; from experiments.cli.app import main; main({arguments.split()}); print(); print(*sys.modules)"
    done = _python(["-c", code], environment or {})
    return {*done.splitlines()[-1].split()}


def _completions(line: str) -> set[str]:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_TESTBED_COMPLETE": "complete_bash"}
    return {*_python(["-m", "experiments"], words).split()}


def _python(arguments: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=CODE_FOLDER,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
