"""A fake of Chameleon's reference API: the lists and items that clients read, over a folder of JSON files.

Source of paths, fields of lists, links, versions, limits and errors: the service itself,
ChameleonCloud/reference_api_v2 on GitHub (FastAPI; main.py, api/, services/). Source of the files' layout and of the
fields of sites, nodes and flavors: ChameleonCloud/reference-repository, whose files the service publishes, and their
models in ChameleonCloud/doni-referenceapi (reference_transmogrifier/models/reference_repo.py), as of November 2026. As
in the service, a missing field of the model is null. Left out: histories of versions, search, and the copy of Blazar's
reservations, which the program does not read.

The file ``answer.json`` replaces every answer: {"status": 503, "type": "text/html", "body": "...", "headers": {}}, with
"times": how many copies of the body the answer has.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

LIMIT = 500
"""The largest number of items in a list."""
FIELDS = {
    "site": ("uid", "name", "description", "location", "site_class", "web"),
    "cluster": ("uid", "created_at"),
    "node": ("uid", "node_name", "node_type"),
    "flavor": ("uid", "name", "vcpus", "ram_size", "disk_size", "gpu", "openstack_properties", "su_cost_per_hour"),
}
"""The fields that are null if a file lacks them; others are passed on as they are."""
ITEM = re.compile(
    r"/sites/(?P<site>[^/]+)(?:/clusters/(?P<cluster>[^/]+)(?:/nodes/(?P<node>[^/]+))?|/flavors/(?P<flavor>[^/]+))?"
)
LIST = re.compile(r"(?P<parent>.*)/(?P<kind>sites|clusters|nodes|flavors)")
Answer = tuple[int, dict[str, Any]]


class ReferenceApi:
    """A WSGI application over a folder with the files of the reference repository."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterator[bytes] | list[bytes]:
        replaced = self._folder / "answer.json"
        if replaced.exists():
            given = {"status": 200, "type": "application/json", "times": 1, "headers": {}} | json.loads(
                replaced.read_text()
            )
            start_response(f"{given['status']} Replaced", [("Content-Type", given["type"]), *given["headers"].items()])
            return (given["body"].encode() for _ in range(given["times"]))
        status, answer = self._answer(str(environ["PATH_INFO"]), parse_qs(environ.get("QUERY_STRING", "")))
        reasons = {200: "OK", 404: "Not Found", 422: "Unprocessable Entity"}
        start_response(f"{status} {reasons[status]}", [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]

    def _answer(self, path: str, query: dict[str, list[str]]) -> Answer:
        path = path.removesuffix(".json").rstrip("/")
        if not path:
            return 200, {"uid": "chameleoncloud", "version": self._version(), "links": [_link("sites", "/sites")]}
        if listed := LIST.fullmatch(path):
            return self._list(path, listed["parent"], listed["kind"].removesuffix("s"), query)
        if item := ITEM.fullmatch(path):
            kind = next(kind for kind in ("flavor", "node", "cluster", "site") if item[kind])
            data = _read(self._file(path, kind))
            return (
                (200, _item(data, kind, path, self._version()))
                if data
                else (404, {"detail": f"{kind.capitalize()} not found"})
            )
        return 404, {"detail": "Not Found"}

    def _list(self, path: str, parent: str, kind: str, query: dict[str, list[str]]) -> Answer:
        numbers = {"offset": (0, 0, None), "limit": (LIMIT, 1, LIMIT)}
        given = {}
        for name, (default, least, most) in numbers.items():
            text = query.get(name, [str(default)])[-1]
            if not text.isdecimal() or int(text) < least or (most and int(text) > most):
                return 422, {
                    "detail": [{"loc": ["query", name], "msg": f"Input should be {least} to {most}", "input": text}]
                }
            given[name] = int(text)
        folder = self._folder / path.lstrip("/")
        files = [self._file(f"{path}/{one.stem}", kind) for one in sorted(folder.glob("*"))] if folder.is_dir() else []
        items = [data for data in map(_read, files) if data]
        page, version = items[given["offset"] : given["offset"] + given["limit"]], self._version()
        return 200, {
            "total": len(items),
            "offset": given["offset"],
            "items": [_item(data, kind, f"{path}/{data.get('uid', '')}", version) for data in page],
            "version": version,
            "links": [_link("self", path), _link("parent", parent or "/")],
        }

    def _file(self, path: str, kind: str) -> Path:
        item = self._folder / path.lstrip("/")
        return item / f"{item.name}.json" if kind in ("site", "cluster") else item.parent / f"{item.name}.json"

    def _version(self) -> str:
        """Return a hash of the files, as the service returns the commit of their repository."""
        files = sorted(self._folder.rglob("*.json"))
        return hashlib.sha1(b"".join(file.read_bytes() for file in files), usedforsecurity=False).hexdigest()


def _item(data: dict[str, Any], kind: str, path: str, version: str) -> dict[str, Any]:
    parent = path.rsplit("/", 2)[0] or "/"
    inner = {"site": ("clusters", "flavors"), "cluster": ("nodes",)}.get(kind, ())
    links = [_link("self", path), _link("parent", parent), *(_link(name, f"{path}/{name}") for name in inner)]
    links += [_link("versions", f"{path}/versions"), _link("version", f"{path}/versions/{version}")]
    return {**dict.fromkeys(FIELDS[kind]), **data, "version": version, "links": links}


def _link(rel: str, href: str) -> dict[str, str]:
    return {"rel": rel, "href": href}


def _read(file: Path) -> dict[str, Any] | None:
    """Return a file's content; None if it is missing or no JSON, which the service passes over."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None
