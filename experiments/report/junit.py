"""Write junit.xml for build servers: one test case per verdict."""

import re
import xml.etree.ElementTree as ET

from experiments.report.content import Report, Statement
from experiments.results.wording import GRADE_NAMES
from experiments.run_options import SHOWN_OPTIONS

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ELEMENTS = {"fail": "failure", "error": "error", "not evaluated": "skipped"}


def render_junit(report: Report) -> str:
    """Return the report as JUnit XML; a statement that was not evaluated, or is known to fail, is skipped."""
    known_failures = sum(bool(statement.known_failure) for statement in report.statements)
    suite = ET.Element(
        "testsuite",
        name=report.run.suite,
        tests=str(len(report.statements)),
        failures=str(report.counts["fail"] - known_failures),
        errors=str(report.counts["error"]),
        skipped=str(report.counts["not evaluated"] + known_failures),
        timestamp=remove_control_characters(report.run.started_at),
        time=_seconds_text(sum(row.result.elapsed_s for row in report.rows if row.result)),
    )
    properties = ET.SubElement(suite, "properties")
    ET.SubElement(properties, "property", name="headline", value=remove_control_characters(report.headline))
    for name in ("run_id", *SHOWN_OPTIONS, "git_commit"):
        ET.SubElement(
            properties, "property", name=name, value=remove_control_characters(str(getattr(report.run, name) or ""))
        )
    for device in report.devices:
        ET.SubElement(properties, "property", name="ran_on", value=remove_control_characters(device.ran_on))
    elapsed = {row.row: row.result.elapsed_s for row in report.rows if row.result}
    for statement in report.statements:
        suite.append(_test_case(report.run.suite, statement, elapsed))
    root = ET.Element("testsuites")
    root.append(suite)
    return xml_text(root)


def xml_text(root: ET.Element) -> str:
    """Return the text of an XML file."""
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _test_case(suite: str, statement: Statement, elapsed: dict[str, float]) -> ET.Element:
    took = elapsed.get(statement.rows[0], 0.0) if statement.kind == "outcome" else 0.0
    case = ET.Element(
        "testcase", classname=f"{suite}.{statement.kind.replace(' ', '_')}", name=statement.id, time=_seconds_text(took)
    )
    if statement.grade:
        properties = ET.SubElement(case, "properties")
        ET.SubElement(properties, "property", name="grade", value=statement.grade)
    if element := "skipped" if statement.known_failure else _ELEMENTS.get(statement.status):
        ET.SubElement(case, element, message=remove_control_characters(statement.reason or statement.value))
    lines = (
        statement.says,
        f"expected: {statement.expected}",
        f"grade: {GRADE_NAMES[statement.grade] if statement.grade else 'none'}",
        f"value: {statement.value}",
        f"ran on: {'; '.join(statement.ran_on)}",
    )
    ET.SubElement(case, "system-out").text = remove_control_characters("\n".join(lines))
    return case


def _seconds_text(value: float) -> str:
    return f"{value:.3f}"


def remove_control_characters(text: str) -> str:
    """Return ``text`` without the characters that XML does not allow, such as terminal colors."""
    return _NOT_XML.sub("", text)
