"""The website's navigation has every page, and links between files work."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.generate import generate, public_commands
from tests.docs.blocks import ROOT, pages

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
ANCHOR = re.compile(r"\]\((?P<file>[^):#\s]*)#(?P<anchor>[^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def generated_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pages that are generated from the code."""
    folder = tmp_path_factory.mktemp("docs")
    generate(folder)
    return folder


def test_the_navigation_has_every_page_and_no_other(generated_pages: Path) -> None:
    written = {page.relative_to(ROOT / "docs").as_posix() for page in pages() if page.is_relative_to(ROOT / "docs")}
    made = {page.relative_to(generated_pages).as_posix() for page in generated_pages.rglob("*.md")}
    assert set(_navigation()) == written | made


def test_every_public_command_has_a_page_with_all_its_options(generated_pages: Path) -> None:
    commands = public_commands()
    assert len(commands) >= 20
    for name, command in commands.items():
        page = (generated_pages / "reference" / "commands" / f"{name}.md").read_text()
        assert page.startswith(f"# testbed {name}\n")
        hidden = [option for param in command.params for option in param.opts if f"{option}" not in page]
        assert not [option for option in hidden if option.startswith("--")]


def test_every_field_of_a_suite_is_on_its_page(generated_pages: Path) -> None:
    from experiments.suites.settings import Settings
    from experiments.suites.suite import Row

    assert all(
        f"`{name}`" in (generated_pages / "reference/fields/settings.md").read_text() for name in Settings.model_fields
    )
    assert all(f"`{name}`" in (generated_pages / "reference/fields/suite.md").read_text() for name in Row.model_fields)


def test_every_field_in_the_generated_tables_has_a_description(generated_pages: Path) -> None:
    """Every line of a table of fields ends with a description."""
    found = [page for name in ("fields", "schemas") for page in (generated_pages / "reference" / name).glob("*.md")]
    lines = [(page.name, line) for page in found for line in page.read_text().splitlines()]
    assert sum(line.startswith("| `") for _, line in lines) > 200
    assert [(name, line) for name, line in lines if line.startswith("| `") and line.rstrip().endswith("|  |")] == []


def test_generated_pages_are_the_same_each_time(generated_pages: Path, tmp_path: Path) -> None:
    again = {page.relative_to(tmp_path): page.read_text() for page in generate(tmp_path)}
    assert again == {name: (generated_pages / name).read_text() for name in again}


def test_links_between_files_have_existing_targets(generated_pages: Path) -> None:
    broken = []
    for page in pages():
        for link in LINK.findall(page.read_text()):
            target = (page.parent / link).resolve()
            made = (
                generated_pages / target.relative_to(ROOT / "docs") if target.is_relative_to(ROOT / "docs") else target
            )
            if not link.startswith("http") and not target.exists() and not made.exists():
                broken.append((page.relative_to(ROOT).as_posix(), link))
    assert not broken


def test_anchors_of_links_are_headings_of_their_pages(generated_pages: Path) -> None:
    broken = []
    for page in pages():
        for link in ANCHOR.finditer(page.read_text()):
            target = (page.parent / link["file"]).resolve() if link["file"] else page
            if not target.exists():
                target = generated_pages / target.relative_to(ROOT / "docs")
            if target.suffix == ".md" and link["anchor"] not in _anchors(target):
                broken.append((page.relative_to(ROOT).as_posix(), link[0]))
    assert not broken


def test_the_site_loads_nothing_from_other_servers() -> None:
    theme = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert theme["theme"]["font"] is False
    assert "extra_javascript" not in theme
    pictures = [*(ROOT / "docs" / "drawings").glob("*.svg"), *(ROOT / "docs" / "pictures").glob("*.svg")]
    assert pictures
    assert not [picture.name for picture in pictures if "url(http" in picture.read_text().replace('"', "")]


def _anchors(page: Path) -> set[str]:
    """Return the anchors that the website gives to the headings of a page."""
    words = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in HEADING.findall(page.read_text())]
    return {re.sub(r"[-\s]+", "-", one) for one in words}


def _navigation(part: Any = None) -> Iterator[str]:
    part = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] if part is None else part
    if isinstance(part, str):
        yield part
    else:
        for inner in part.values() if isinstance(part, dict) else part:
            yield from _navigation(inner)
