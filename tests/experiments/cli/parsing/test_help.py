"""The help of each command is complete on a narrow terminal, and its examples are valid command lines."""

import shlex

import pytest
import typer

from experiments.cli.app import app, main
from experiments.cli.parsing.commands import COMMANDS
from experiments.cli.parsing.examples import examples
from experiments.prediction.service import select_rows
from experiments.suites.cards import card_named, cards
from experiments.suites.suite import suite_names

NARROW = 80


@pytest.fixture
def help_lines(capsys, monkeypatch):
    """Print the help of a command on a narrow terminal; return its lines."""
    monkeypatch.setenv("COLUMNS", str(NARROW))

    def run_and_split(*arguments: str) -> list[str]:
        assert main([*arguments]) == 0
        return capsys.readouterr().out.splitlines()

    return run_and_split


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_narrow_terminal_and_is_not_cut(help_lines, name):
    lines = help_lines(name, "--help")
    assert max(map(len, lines)) <= NARROW
    assert not [line for line in lines if line.endswith("...") or "<" in line or "{" in line or "[[" in line]
    assert help_lines(name, "-h") == lines


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_that_takes_no_suite_does_not_say_what_happens_without_one(help_lines, name):
    usage, text = (lines := help_lines(name, "--help"))[0], " ".join(" ".join(lines).split())
    assert "without SUITE:" not in text or "[SUITE" in usage


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_two_examples(help_lines, name):
    assert len(examples()[name]) >= 2
    assert help_lines(name, "--help")[-len(examples()[name]) :] == [f"  {line}" for line in examples()[name]]


@pytest.mark.parametrize("line", [line for lines in examples().values() for line in lines])
def test_the_command_of_an_example_accepts_its_arguments(line):
    program, name, *arguments = shlex.split(line.partition(" | ")[0])
    group = typer.main.get_group(app)
    parent = group.make_context(program, [name])
    chosen, command, rest = group.resolve_command(parent, [name, *arguments])
    given = command.make_context(chosen, rest, parent=parent, obj=line).params
    assert line in examples()[name]
    for card in _names_in(given.get("card")) - {"all", "auto", "smallest"}:
        card_named(card)
    for suite in _names_in(given.get("suites")) | _names_in(given.get("suite")):
        assert suite in suite_names()
    if (rows := given.get("rows")) and name == "fit":
        assert select_rows(rows[0], given["card"])


@pytest.mark.parametrize("line", [line for name in ("list", "cards", "models") for line in examples()[name]])
def test_examples_of_commands_that_compute_nothing_can_be_run(help_lines, line):
    assert help_lines(*shlex.split(line)[1:])


def test_the_cards_are_listed_with_the_memory_of_each(help_lines):
    text = "\n".join(help_lines("cards"))
    for name, card in cards().items():
        assert name in text
        assert f"{card.usable_gib:.2f}" in text


def _names_in(value: object) -> set[str]:
    return {*value} if isinstance(value, (tuple, list)) else {*str(value or "").split(",")} - {""}
