"""Find what the change log of an installed package says about a version."""

import re
from collections.abc import Iterator
from importlib.metadata import Distribution

CHANGE_LOG_FILE = re.compile(r"(change-?log|changes|history|news|release-?notes)(\.\w+)?", re.IGNORECASE)
CHANGE_LOG_LINK = re.compile(r"change|release|history|news", re.IGNORECASE)
UNDERLINE = re.compile(r"[-=~^*#\s]*")


def change_log_line(package: Distribution, version: str) -> str:
    """Return the first line about ``version`` in the change log that the package contains, else the log's URL.

    Return an empty text if the package has neither.
    """
    for text in _change_log_texts(package):
        if line := _first_line(text, version):
            return line
    links = [link.partition(",") for link in package.metadata.get_all("Project-URL") or ()]
    return next((address.strip() for name, _, address in links if CHANGE_LOG_LINK.search(name)), "")


def _change_log_texts(package: Distribution) -> Iterator[str]:
    for file in package.files or ():
        if CHANGE_LOG_FILE.fullmatch(file.name):
            yield str(file.read_text())
    yield str(package.metadata.json.get("description", ""))


def _first_line(text: str, version: str) -> str:
    """Return the first line of text below the heading that contains the version; "" without such a heading."""
    heading = re.compile(rf"(?<![\w.])v?{re.escape(version)}(?![\w.]*\d)")
    lines = iter(text.splitlines())
    for line in lines:
        if heading.search(line) and len(line.split()) < 8:
            return next((one.strip(" -*\t") for one in lines if not UNDERLINE.fullmatch(one)), "")
    return ""
