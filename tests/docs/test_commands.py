"""Every command of README and documentation runs as written; of those that cannot run here, the options exist."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.cli.parsing.commands import COMMANDS, load_command
from experiments.system.files import cache_folder
from tests.docs.blocks import NOT_RUN, ROOT, Block, blocks

ALL = list(blocks())
RUN = list({block.code: block for block in ALL if block.runs}.values())
HIDDEN = ("OS_", "TESTBED_")
TARGET = re.compile(r"^([a-z-]+):.*##", re.MULTILINE)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like the repository, in which commands may leave results."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("results", ".git", "site"):
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment variables of a user without an account and an SSH key, but with the caches of these tests."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, command in (("testbed", "-m experiments"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {command} "$@"\n')
        (programs / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
    return kept | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(cache_folder().parent),
        "TESTBED_CACHE": str(cache_folder()),
        "COLUMNS": "120",
    }


def _test_case(block: Block) -> Any:
    """Return a test case. Blocks with predictions share one test process, so that each prediction is traced once."""
    marks = [pytest.mark.xdist_group("predictions of the documentation")] if "testbed predict" in block.code else []
    return pytest.param(block, id=block.place, marks=marks)


@pytest.mark.parametrize("block", map(_test_case, RUN))
def test_a_block_of_commands_runs_as_written(block: Block, checkout: Path, environment: dict[str, str]) -> None:
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == block.exit_code, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_block_that_does_not_run_states_the_reason() -> None:
    unknown = {block.place: block.note for block in ALL if not block.runs and not block.note.startswith(NOT_RUN)}
    assert not unknown


def test_the_documentation_has_blocks_that_run_and_blocks_with_each_reason_for_not_running() -> None:
    assert len(RUN) >= 5
    assert {block.note.partition(":")[0] for block in ALL} >= {"", "exit", "needs", "slow"}


def test_documented_commands_that_cannot_run_here_use_only_existing_options() -> None:
    wrong = []
    for block, words in _commands():
        if words[0] == "testbed":
            known = _options(words[1]) if words[1] in COMMANDS else None
            own = words[2 : words.index("--")] if "--" in words else words[2:]
            given = {word.partition("=")[0] for word in own if word.startswith("-")}
            if known is None or given - known:
                wrong.append((block.place, words[1], sorted(given - (known or set()))))
    assert not wrong


def test_every_make_target_that_the_documentation_names_exists() -> None:
    targets = set(TARGET.findall((ROOT / "Makefile").read_text()))
    wrong = [(block.place, words[1]) for block, words in _commands() if words[0] == "make" and words[1] not in targets]
    assert not wrong


def test_the_readme_names_the_main_command_and_the_test_command() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "\nmake run-single " in readme
    assert "\nmake test " in readme


def test_the_first_pages_say_how_long_the_main_command_takes_and_show_its_output() -> None:
    assert re.search(r"`make run-single` takes about \d+ minutes", (ROOT / "README.md").read_text())
    assert re.search(r"!\[Terminal output of testbed run: .*\.svg\)", (ROOT / "docs/getting-started.md").read_text())


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_pages_have_links_to_the_labs_the_guide_and_chameleon(page: str) -> None:
    text = (ROOT / page).read_text()
    for address in ("teaching-on-testbeds/llm-chi", "mvsjober/fine-tuning-examples", "chameleoncloud.org"):
        assert re.search(rf"\]\(https://[^)]*{address}\)", text)


@pytest.mark.parametrize(
    ("page", "section"),
    [
        ("tutorials/course-staff.md", "machines"),
        ("how-to/lease-nodes.md", "machines"),
        ("how-to/slurm-cluster.md", "machines"),
        ("how-to/own-weights-and-data.md", "runs"),
        ("how-to/several-gpus.md", "runs"),
        ("how-to/lab-versions.md", "runs"),
    ],
)
def test_pages_about_untested_machines_say_so_before_their_first_section(page: str, section: str) -> None:
    introduction, _, _ = (ROOT / "docs" / page).read_text().partition("\n## ")
    assert re.search(
        rf"\bn(ever|o row)\b[^.]*: see\s\[limits\]\(\.\./limits\.md#{section}\)", introduction, re.IGNORECASE
    )


def _commands() -> Iterator[tuple[Block, list[str]]]:
    for block in ALL:
        for line in block.code.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield block, words


def _options(command: str) -> set[str]:
    return {name for param in load_command(command).params for name in (*param.opts, *param.secondary_opts)} | {
        "--help"
    }
