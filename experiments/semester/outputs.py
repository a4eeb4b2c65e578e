"""Convert the outcome of a check to a page, to Markdown for the summary of a CI job, to JUnit, and to a message."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from experiments.report.identity import duration_in_words, format_date
from experiments.report.junit import remove_control_characters, xml_text
from experiments.report.pages.environment import render_template, save_page
from experiments.semester.outcome import STATUSES, Outcome, PartRun

PAGE = "semester.html"
JUNIT_ELEMENTS = {"fail": "failure", "error": "error", "not evaluated": "skipped"}


def write_page(folder: Path, outcome: Outcome) -> Path:
    """Write the page of a check to the check's folder; return the path of the page.

    The page is one file that needs no network and no JavaScript.
    """
    check = outcome.check
    text = render_template(
        "semester.html",
        outcome=outcome,
        statuses=STATUSES,
        day=format_date(check.begun_at.isoformat()),
        took=duration_in_words(check.duration_s()),
        packages=list(dict.fromkeys(name for versions in check.installed.values() for name in versions)),
        parts=[
            (outcome.titles[name], duration_in_words(done.took_s), done.problem) for name, done in check.done.items()
        ],
    )
    save_page(folder / PAGE, text)
    return folder / PAGE


def markdown_summary(outcome: Outcome) -> str:
    """Return the outcome as Markdown."""
    counts = (
        f"| {versions} | {' | '.join(str(outcome.count(versions, status)) for status in STATUSES)} |"
        for versions in outcome.check.version_sets
    )
    lines = [
        f"## {outcome.headline}",
        "",
        f"| versions | {' | '.join(STATUSES)} |",
        f"|---|{'---:|' * len(STATUSES)}",
        *counts,
        *_section("Flipped", [f"- {flip.line}" for flip in outcome.flips]),
        *_section("To fix in the labs", [f"- {one}" for one in outcome.to_fix]),
    ]
    return "\n".join(lines) + "\n"


def finished_message(outcome: Outcome) -> tuple[str, str]:
    """Return title and text of the message of a finished check."""
    counts = [
        f"{versions}: " + ", ".join(f"{outcome.count(versions, status)} {status}" for status in STATUSES)
        for versions in outcome.check.version_sets
    ]
    flips = [f"flipped: {flip.line}" for flip in outcome.flips]
    return f"testbed: semester check finished. {outcome.headline}", "\n".join([*counts, *flips, *outcome.to_fix])


def outcome_as_data(outcome: Outcome) -> dict[str, object]:
    """Return the outcome for --json: numbers of statements by status and set of versions, flips, fixes, the check."""
    sets = {name: {status: outcome.count(name, status) for status in STATUSES} for name in outcome.check.version_sets}
    flips = [flip._asdict() for flip in outcome.flips]
    check = outcome.check.model_dump(mode="json")
    return {"statements": sets, "flips": flips, "to_fix": outcome.to_fix, "check": check}


def junit_xml(outcome: Outcome) -> str:
    """Return the outcome as JUnit XML: each statement of each run, each part, and each flip as a failure."""
    root = ET.Element("testsuites")
    for run in outcome.runs:
        _add_junit_suite(root, f"{run.versions} {run.kind} {run.run.suite} {run.run.card}", list(_junit_cases(run)))
    parts = outcome.check.done.items()
    _add_junit_suite(root, "parts", [(name, "error" if done.problem else "", done.problem) for name, done in parts])
    _add_junit_suite(
        root, "flips", [(f"{flip.where}: {flip.what}", "failure", "; ".join(flip.causes)) for flip in outcome.flips]
    )
    return xml_text(root)


def _section(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield from ("", f"### {title}", "", *lines)


def _junit_cases(run: PartRun) -> Iterator[tuple[str, str, str]]:
    for one in run.verdicts:
        yield one.id, "skipped" if one.known_failure else JUNIT_ELEMENTS.get(one.status, ""), one.reason or one.value


def _add_junit_suite(root: ET.Element, name: str, cases: list[tuple[str, str, str]]) -> None:
    suite = ET.SubElement(root, "testsuite", name=name, tests=str(len(cases)))
    for plural, element in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(plural, str(sum(kind == element for _, kind, _ in cases)))
    for id_, kind, reason in cases:
        case = ET.SubElement(suite, "testcase", classname=name.replace(" ", "."), name=remove_control_characters(id_))
        if kind:
            ET.SubElement(case, kind, message=remove_control_characters(reason))
