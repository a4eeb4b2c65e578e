"""Read a YAML file that may be anyone's: within limits of size and depth, and with the line of each value."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.errors import InputError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""LibYAML's loader where PyYAML was built with it: seven times as fast."""
LARGEST_BYTES, MOST_VALUES, DEEPEST = 2**20, 100_000, 30
"""Limits of a file: its size, its values with each alias written out, and how deep they are nested."""


@dataclass(frozen=True)
class Document:
    """A YAML file that is read: its data, and the node that tells the line of each value.

    duplicates: keys that a mapping has twice, with the line of the second.
    """

    path: Path
    data: Any
    node: yaml.Node | None
    duplicates: tuple[tuple[str, int], ...]

    def line(self, place: Sequence[int | str]) -> int:
        """Return the line of the value at ``place``, keys and numbers from the top; of what holds it if it is none."""
        line, node = 1, self.node
        for part in place:
            found = _child(node, part)
            if found is None:
                break
            line, node = found
        return line


def _duplicates(root: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Yield each key that a mapping has twice, and the line of the second."""
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        keys = set()
        for entry in node.value:
            nodes += entry if isinstance(entry, tuple) else [entry]
            if isinstance(entry, tuple) and isinstance(entry[0], yaml.ScalarNode):
                if entry[0].value in keys:
                    yield entry[0].value, entry[0].start_mark.line + 1
                keys.add(entry[0].value)


def _child(node: yaml.Node | None, part: int | str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == str(part):
                return key.start_mark.line + 1, value
    return None


def read_document(path: Path) -> Document:
    """Read the YAML file in ``path``. Raises InputError if it is missing, too large or not YAML."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > LARGEST_BYTES:
        raise InputError(f"{path}: is larger than {LARGEST_BYTES // 1024} KiB")
    try:
        text = content.decode()
        _reject_too_much(text, path)
        return _composed(text, path)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not valid YAML (not UTF-8 text)") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None


def _composed(text: str, path: Path) -> Document:
    loader = LOADER(text)
    try:
        node = loader.get_single_node()
        duplicates = tuple(_duplicates(node))  # before "<<" is replaced by the keys that it stands for
        return Document(path, None if node is None else loader.construct_document(node), node, duplicates)
    finally:
        loader.dispose()


def _reject_too_much(text: str, path: Path) -> None:
    """Raise InputError for a document that is nested too deep or too large; each alias counts as what it repeats."""
    sizes: dict[str, int] = {}
    held: list[tuple[str | None, int]] = [(None, 0)]
    for event in _events(text):
        anchor, size = getattr(event, "anchor", None), 0
        if isinstance(event, yaml.CollectionStartEvent):
            held.append((anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = held.pop()
        elif isinstance(event, yaml.AliasEvent):
            anchor, size = None, sizes.get(str(anchor), MOST_VALUES)
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        if anchor and size:
            sizes[anchor] = size
        held[-1] = (held[-1][0], held[-1][1] + size)
        if held[-1][1] > MOST_VALUES or len(held) > DEEPEST:
            limits = f"{MOST_VALUES} values, nested {DEEPEST} deep, and no value that holds itself"
            raise InputError(f"{path}: too much YAML; allowed: {limits}")


def _events(text: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=LOADER)
    except yaml.YAMLError:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)  # raises the same error with the line that it begins in
