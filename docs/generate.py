"""Write the reference pages that are generated from the code: commands, YAML fields, schemas, labs, catalog, roles.

    python docs/generate.py [DOCS_FOLDER]

Run it before `mkdocs build`; `make docs` does both. Git ignores the pages that it writes.
"""

import contextlib
import inspect
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin
from unittest.mock import patch

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from docs.sentence_tables import COLUMN_NAMES, EVIDENCE, INTRODUCTION, sentence_rows  # noqa: E402
from experiments.cli.app import main  # noqa: E402
from experiments.cli.parsing.commands import COMMANDS, load_command  # noqa: E402
from experiments.cli.parsing.examples import examples  # noqa: E402
from experiments.cli.parsing.help import help_records  # noqa: E402
from experiments.notebooks.tables import changes_table  # noqa: E402
from experiments.results.run_folder import run_folders  # noqa: E402
from experiments.results.wording import QUANTITY_LABELS_AND_UNITS  # noqa: E402
from experiments.runners.slurm.profile import Profile  # noqa: E402
from experiments.suites.cards import IMAGE_CUDA, Card, cards  # noqa: E402
from experiments.suites.models import Model, models  # noqa: E402
from experiments.suites.settings import Settings  # noqa: E402
from experiments.suites.suite import Suite, suite_named, suite_names  # noqa: E402

FIELD_PAGES: dict[str, tuple[str, type[BaseModel], str]] = {
    "suite": ("Suite fields", Suite, "A file in `experiments/suites/labs/` is one suite."),
    "settings": ("Settings of a row", Settings, "The allowed keys in `common`, `settings` and `per_card` of a suite."),
    "card": ("Card fields", Card, "An entry in `experiments/suites/catalog/cards.yaml`."),
    "model": ("Model fields", Model, "An entry in `experiments/suites/catalog/models.yaml`."),
    "profile": ("Cluster profile fields", Profile, "A file in `experiments/runners/slurm/clusters/`, or your own."),
}
SCHEMA_INTRODUCTIONS = {
    "result": "The result of one row. `testbed run` writes one for each row.",
    "run": "The options of a run.",
    "verdict": "Every statement of a run with its status.",
    "predictions": "The predictions for the rows of a run.",
}
GENERATED_FOLDERS = ("catalog", "commands", "fields", "labs", "schemas", "sentences")
"""Folders of reference/ that contain only generated pages."""
COPIED_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
REPOSITORY_LINK = re.compile(r"\[([^\]]+)\]\((?!docs/|https?:|#)[^)]+\)")
"""A link to a file outside of docs/, which the website does not contain."""


def generate(docs: Path) -> list[Path]:
    """Write all generated pages under ``docs``; return their paths."""
    pages = {**copied_pages(), **command_pages(), **field_pages(), **schema_pages(), **lab_pages(), **catalog_pages()}
    pages |= sentence_pages()
    pages["reference/roles.md"] = roles_page()
    for name in GENERATED_FOLDERS:
        shutil.rmtree(docs / "reference" / name, ignore_errors=True)
    for name, text in pages.items():
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.rstrip() + "\n")
    return [docs / name for name in pages]


def copied_pages() -> dict[str, str]:
    """Return the copies of pages in the root folder of the repository, with links that work on the website."""
    texts = {page: (ROOT / source).read_text() for source, page in COPIED_PAGES.items()}
    return {page: REPOSITORY_LINK.sub(r"\1", text).replace("](docs/", "](") for page, text in texts.items()}


def public_commands() -> dict[str, Any]:
    """Return the commands that `testbed --help` lists, by name."""
    return {name: load_command(name) for name in COMMANDS}


def command_pages() -> dict[str, str]:
    """Return a page for each public command, and their index."""
    commands = public_commands()
    rows = [(f"[testbed {name}]({name}.md)", _first_paragraph(command)) for name, command in commands.items()]
    index = ["# Commands", _table(("command", "description"), rows), "See also: [exit codes](../exit-codes.md)."]
    return {"reference/commands/index.md": "\n\n".join(index)} | {
        f"reference/commands/{name}.md": command_page(name, command) for name, command in commands.items()
    }


def command_page(name: str, command: Any) -> str:
    """Return the page of one command: usage, arguments, options."""
    usage, _, _ = _output_of(name, "--help").strip().partition("\n\n")
    parts = [f"# testbed {name}", _plain_markdown(command.help or ""), f"```text\n{usage.removeprefix('Usage: ')}\n```"]
    context = command.make_context(name, [], resilient_parsing=True)
    for kind in ("argument", "option"):
        if found := help_records(command, context, kind):
            rows = [(_as_code(names), meaning) for names, meaning in found]
            parts += [f"## {kind.title()}s", _table((kind, "meaning"), rows)]
    lines = "\n".join(examples()[name])
    return "\n\n".join([*parts, "## Examples", f"```text\n{lines}\n```"])


def _output_of(*arguments: str) -> str:
    """Return what `testbed ARGUMENTS` prints."""
    output = io.StringIO()
    with patch.object(sys, "argv", ["testbed"]), contextlib.redirect_stdout(output):
        main(list(arguments))
    return output.getvalue()


def quantities_page() -> str:
    """Return the page of the quantities that claims and reference values can name."""
    rows = [(f"`{name}`", label, unit or "-") for name, (label, unit) in QUANTITY_LABELS_AND_UNITS.items()]
    text = "The values of `quantity` in the checks of claims and in reference values."
    return "\n\n".join(["# Quantities", text, _table(("quantity", "meaning", "unit"), rows)])


def field_pages() -> dict[str, str]:
    """Return a page for each kind of YAML file, with the keys of its models, and a page of the quantities."""
    pages = {"reference/fields/quantities.md": quantities_page()}
    for name, (title, root, text) in FIELD_PAGES.items():
        sections = [f"# {title}", text]
        for model in _nested_models(root):
            sections += [f"## {model.__name__}", _plain_markdown(model.__doc__ or ""), _fields_table(model)]
        pages[f"reference/fields/{name}.md"] = "\n\n".join(sections)
    return pages


def schema_pages() -> dict[str, str]:
    """Return a page for each schema that `testbed schema` prints, and the schema itself as a separate file."""
    pages = {}
    for name, schema in json.loads(_output_of("schema")).items():
        text = json.dumps(schema, indent=2)
        sections = [
            f"# {name}.json",
            SCHEMA_INTRODUCTIONS.get(name, ""),
            f"The JSON schema: [{name}.json]({name}.json).",
        ]
        for title, part in {schema.get("title", name): schema, **schema.get("$defs", {})}.items():
            sections += [f"## {title}", _plain_markdown(part.get("description", "")), _properties_table(part)]
        pages[f"reference/schemas/{name}.md"] = "\n\n".join(sections)
        pages[f"reference/schemas/{name}.json"] = text
    return pages


def lab_pages() -> dict[str, str]:
    """Return a page for each suite."""
    return {f"reference/labs/{name}.md": lab_page(suite_named(name)) for name in suite_names()}


def lab_page(suite: Suite) -> str:
    """Return the page of one suite: rows and claims."""
    rows = [
        (
            f"`{row.id}`",
            row.title,
            ", ".join(row.cards or suite.cards),
            _settings_in_words(row.settings),
            row.expect.outcome or "",
        )
        for row in suite.rows
    ]
    claims = [(f"`{claim.id}`", claim.says) for claim in suite.claims]
    twins = [
        (f"`{row}`", ", ".join(scale.cards), _settings_in_words(settings))
        for scale in suite.scales
        for row, settings in scale.rows.items()
    ]
    scales = ["## Twins for smaller cards", _table(("row", "cards", "settings of the twin"), twins)] if twins else []
    return "\n\n".join(
        [
            f"# {suite.title}",
            f"Suite `{suite.suite}`, version {suite.version}. {suite.source}.",
            f"Cards: {', '.join(suite.cards)}. Settings that all rows share: {_settings_in_words(suite.common)}.",
            "## Rows",
            _table(("row", "title", "cards", "settings of the row", "expected outcome"), rows),
            "## Claims",
            _table(("claim", "the lab's statement"), claims),
            *scales,
            *_measured_changes(suite),
        ]
    )


def _measured_changes(suite: Suite) -> Iterator[str]:
    """Yield heading, sentence and table for each stored run of the suite that measured rows and their variants."""
    for folder in run_folders(EVIDENCE) if suite.rows_with_variants() else ():
        run = folder.read_run()
        if run.suite == suite.suite and (table := changes_table(suite, folder.results())):
            yield f"## What the changes save and cost, on {run.card}"
            yield f"Measured at size {run.size}. The results are in `experiments/evidence/{folder.path.name}`."
            yield table


def sentence_pages() -> dict[str, str]:
    """Return a page for each suite: the sentences of its lab, their statements, and the verdicts."""
    return {
        f"reference/sentences/{suite.suite}.md": "\n\n".join(
            [f"# Sentences of the lab: {suite.title}", INTRODUCTION, _table(COLUMN_NAMES, sentence_rows(suite))]
        )
        for suite in map(suite_named, suite_names())
    }


def catalog_pages() -> dict[str, str]:
    """Return the pages of the catalog: cards and models."""
    card_rows = [
        (
            f"`{name}`",
            card.name,
            f"{card.memory_gib:.2f}{' (assumed)' if card.memory_is_assumed else ''}",
            f"{card.usable_gib:.2f}",
            card.compute_capability,
            card.pytorch_build,
            ", ".join(f"{kind} {rate:g}" for kind, rate in card.peak_tflops.items()),
            f"{card.bandwidth_gb_s:g}",
        )
        for name, card in sorted(cards().items(), key=lambda item: item[1].memory_gib)
    ]
    card_heads = (
        "name",
        "GPU",
        "memory, GiB",
        "usable, GiB",
        "compute capability",
        "PyTorch for",
        "peak, TFLOP/s",
        "bandwidth, GB/s",
    )
    model_rows = [
        (f"`{name}`", model.family, f"{model.parameters / 1e9:.2f}e9" if model.parameters else "", model.hub)
        for name, model in models().items()
    ]
    introduction = (
        "Usable memory is the memory that one process can allocate: the memory of the card, less its CUDA context. "
        "The column *PyTorch for* names the build of PyTorch 2.11 to 2.13 that runs on the card; the project's image "
        f"has PyTorch for CUDA {IMAGE_CUDA}. For any other GPU, use its memory, such as `--card 24GiB`. "
        "`experiments/suites/catalog/cards.yaml` names the sources."
    )
    return {
        "reference/catalog/cards.md": f"# Cards\n\n{introduction}\n\n{_table(card_heads, card_rows)}",
        "reference/catalog/models.md": "# Models\n\n"
        + _table(("name", "family", "parameters", "published weights"), model_rows),
    }


def roles_page() -> str:
    """Return the page with the variables of the Ansible roles, in the order in which the roles run."""
    site = yaml.safe_load((ROOT / "ansible" / "site.yml").read_text())
    named = [role if isinstance(role, str) else role["role"] for play in site for role in play.get("roles", [])]
    folders = sorted((ROOT / "ansible" / "roles").iterdir(), key=lambda path: (_position(named, path.name), path.name))
    sections = ["# Ansible roles", "This page lists the variables of each role, from its `defaults/main.yml`."]
    for folder in folders:
        defaults = (folder / "defaults" / "main.yml").read_text().removeprefix("---\n").strip()
        sections += [f"## {folder.name}", f"```yaml\n{defaults}\n```"]
    return "\n\n".join(sections)


def _position(names: list[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def _first_paragraph(command: Any) -> str:
    return (command.help or "").partition("\n\n")[0]


def _nested_models(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield ``root`` and the models of its fields and of their fields, each once, in reading order."""
    seen, waiting = set(), [root]
    while waiting:
        model = waiting.pop(0)
        if model not in seen:
            seen.add(model)
            yield model
            waiting += [inner for field in model.model_fields.values() for inner in _models_of_type(field.annotation)]


def _models_of_type(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_of_type(part)]


def _fields_table(model: type[BaseModel]) -> str:
    rows = [
        (
            f"`{name}`",
            _type_name(field.annotation),
            _field_default(field.default, field.default_factory),
            field.description or "",
        )
        for name, field in model.model_fields.items()
    ]
    return _table(("key", "type", "default", "meaning"), rows)


def _field_default(default: Any, factory: Callable[..., Any] | None) -> str:
    if default is PydanticUndefined:
        return "" if factory else "required"
    if isinstance(default, BaseModel) or default in ((), "", None):
        return "none" if default is None else ""
    return f"`{default}`"


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " / ".join(f"`{argument}`" for argument in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type_name(part) for part in arguments if part is not type(None))
    if origin is tuple:
        kinds = dict.fromkeys(_type_name(part) for part in arguments if part is not Ellipsis)
        return f"list of {', '.join(kinds)}"
    if origin is dict:
        return f"map of {_type_name(arguments[0])} to {_type_name(arguments[1])}"
    if origin is not None and arguments:
        return _type_name(arguments[0])
    names = {str: "text", int: "whole number", float: "number", bool: "true / false", Any: "any value"}
    name = names.get(annotation) or str(getattr(annotation, "__name__", annotation))
    return f"[{name}](#{name.lower()})" if _models_of_type(annotation) else name


def _properties_table(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        (f"`{name}`", _schema_type(value), "yes" if name in required else "", value.get("description", ""))
        for name, value in schema.get("properties", {}).items()
    ]
    return _table(("key", "type", "required", "meaning"), rows) if rows else ""


def _schema_type(schema: dict[str, Any]) -> str:
    if reference := schema.get("$ref", "").rpartition("/")[2]:
        return f"[{reference}](#{reference.lower()})"
    if options := schema.get("anyOf"):
        return " or ".join(_schema_type(option) for option in options)
    if "const" in schema:
        return f"`{schema['const']}`"
    if values := schema.get("enum"):
        return " / ".join(f"`{value}`" for value in values)
    if schema.get("type") == "array":
        return f"list of {_schema_type(schema.get('items', {}))}"
    return str(schema.get("type", "any value"))


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *([_table_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _table_cell(text: str) -> str:
    """Return the text of a table cell, with vertical bars outside of code escaped, at which Markdown would split it."""
    parts = re.split(r"(`[^`]*`)", _plain_markdown(" ".join(str(text).split())))
    return "".join(part if part.startswith("`") else part.replace("|", "\\|") for part in parts)


def _settings_in_words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_value_in_words(value)}" for key, value in settings.items())


def _value_in_words(value: Any) -> str:
    return f"({_settings_in_words(value)})" if isinstance(value, dict) else str(value)


def _as_code(text: str) -> str:
    return f"`{text}`"


def _plain_markdown(text: str) -> str:
    """Return plain text so that Markdown shows it unchanged, except for text in backticks and links."""
    parts = re.split(r"(``[^`]+``|`[^`]+`)", inspect.cleandoc(text))
    return "".join(_escape(part) if index % 2 == 0 else part for index, part in enumerate(parts))


def _escape(text: str) -> str:
    return text.replace("*", "\\*").replace("<", "&lt;")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    print(f"{len(generate(target))} pages written to {target}")
