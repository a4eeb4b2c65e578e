"""Read an untrusted YAML file within limits of size and depth, and find the line of each value."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.errors import InputError
from provision.files import read_bytes

YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""LibYAML's loader if PyYAML was built with it, because it is seven times as fast; otherwise PyYAML's own loader."""
MAX_BYTES, MAX_VALUES, MAX_DEPTH = 2**20, 100_000, 30
"""Limits of a file: its size, the number of values with each alias expanded, and the nesting depth."""


@dataclass(frozen=True)
class Document:
    """The content of a YAML file: its data, and the root node, which has the line of each value.

    duplicates: keys that occur twice in a mapping, each with the line of the second occurrence.
    """

    path: Path
    data: Any
    node: yaml.Node | None
    duplicates: tuple[tuple[str, int], ...]

    def line(self, place: Sequence[int | str]) -> int:
        """Return the line of the value at ``place``: keys and list indices from the top.

        Without a value at this place, the line of the nearest enclosing value is returned.
        """
        line, node = 1, self.node
        for part in place:
            found = _find_child(node, part)
            if found is None:
                break
            line, node = found
        return line


def _duplicate_keys(root: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Yield each key that occurs twice in a mapping, and the line of the second occurrence."""
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


def _find_child(node: yaml.Node | None, part: int | str) -> tuple[int, yaml.Node] | None:
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
        content = read_bytes(path, MAX_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        text = content.decode("utf-8-sig")
        _reject_oversized(text, path)
        return _parse_document(text, path)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not valid YAML (not UTF-8 text)") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None


def _parse_document(text: str, path: Path) -> Document:
    loader = YAML_LOADER(text)
    try:
        node = loader.get_single_node()
        duplicates = tuple(_duplicate_keys(node))  # before "<<" is replaced by the merged keys
        return Document(path, None if node is None else loader.construct_document(node), node, duplicates)
    finally:
        loader.dispose()


def _reject_oversized(text: str, path: Path) -> None:
    """Raise InputError for a document that is too large or nested too deep.

    An alias counts as many values as the value that it repeats.
    """
    sizes: dict[str, int] = {}
    open_collections: list[tuple[str | None, int]] = [(None, 0)]
    for event in _parse_events(text):
        anchor, size = getattr(event, "anchor", None), 0
        if isinstance(event, yaml.CollectionStartEvent):
            open_collections.append((anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_collections.pop()
        elif isinstance(event, yaml.AliasEvent):
            anchor, size = None, sizes.get(str(anchor), MAX_VALUES)
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        if anchor and size:
            sizes[anchor] = size
        open_collections[-1] = (open_collections[-1][0], open_collections[-1][1] + size)
        if open_collections[-1][1] > MAX_VALUES or len(open_collections) > MAX_DEPTH:
            limits = f"{MAX_VALUES} values, nested {MAX_DEPTH} deep, and no value that contains itself"
            raise InputError(f"{path}: the YAML document is too large; allowed: {limits}")


def _parse_events(text: str) -> Iterator[yaml.Event]:
    try:
        yield from yaml.parse(text, Loader=YAML_LOADER)
    except yaml.YAMLError:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)  # raises the same error, with the line where it begins
