"""Fake Hugging Face hub: a server on this machine that supports the requests that downloads need.

The library huggingface_hub is real and connects to it through HF_ENDPOINT. File types that are usually large are served
as from Git LFS and identified by their SHA-256; other files are identified by their Git id.
"""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LARGE = (".safetensors", ".bin", ".parquet")
COMMIT = "0123456789" * 4


class FakeHub(ThreadingHTTPServer):
    """Server of the folders in ``repos``, by kind and name ('models/team/small').

    downloads: the number of downloads by file; requests: the number of all requests. corruptions: how many more times a
    file is served with a wrong byte. slow_s: additional time of a download. error_status: HTTP status of all answers.
    commit: the commit of the branch main.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), RequestHandler)
        self.repos: dict[str, Path] = {}
        self.downloads: Counter[str] = Counter()
        self.requests = 0
        self.corruptions: dict[str, int] = {}
        self.slow_s = 0.0
        self.error_status: int | None = None
        self.commit = COMMIT

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class RequestHandler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests += 1
        path = self.path.partition("?")[0]
        if self.server.error_status:
            self._send(self.server.error_status, b"")
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            self._answer_for_repo("/".join(match.groups()), self._info)
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/[^/]+", path):
            self._answer_for_repo("/".join(match.groups()), self._tree)
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind, repo, commit, name = match.groups()
            self._answer_for_repo(f"{kind or 'models/'}{repo}", lambda folder: self._file(folder / name, name, commit))
        else:
            self._send(404, b"")

    def _answer_for_repo(self, repo, answer) -> None:
        if repo in self.server.repos:
            answer(self.server.repos[repo])
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _info(self, folder: Path) -> None:
        names = [{"rfilename": path.relative_to(folder).as_posix()} for path in files(folder)]
        self._send(200, json.dumps({"id": folder.name, "sha": self.server.commit, "siblings": names}).encode())

    def _tree(self, folder: Path) -> None:
        entries = [
            {
                "type": "file",
                "path": path.relative_to(folder).as_posix(),
                "size": path.stat().st_size,
                "oid": git_id(path.read_bytes()),
            }
            | ({"lfs": {"oid": etag(path), "size": path.stat().st_size, "pointerSize": 130}} if is_large(path) else {})
            for path in files(folder)
        ]
        self._send(200, json.dumps(entries).encode())

    def _file(self, path: Path, name: str, commit: str) -> None:
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content = path.read_bytes()
        if self.command == "GET":
            self.server.downloads[name] += 1
            time.sleep(self.server.slow_s)
            if self.server.corruptions.get(name, 0):
                self.server.corruptions[name] -= 1
                content = content[:-1] + bytes([content[-1] ^ 1])
        self._send(200, content, {"ETag": f'"{etag(path)}"', "X-Repo-Commit": commit})

    def _send(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has been killed meanwhile
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return None


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def is_large(path: Path) -> bool:
    return path.suffix in LARGE


def etag(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest() if is_large(path) else git_id(content)


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()
