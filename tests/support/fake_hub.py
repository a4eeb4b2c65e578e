"""A stub of the Hugging Face hub: a server on this machine that answers huggingface_hub as far as downloads need it.

Real: huggingface_hub itself, told of it by HF_ENDPOINT. Large kinds of files are as if kept by Git LFS, known by their
SHA-256; the others by their id in Git.
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


class Hub(ThreadingHTTPServer):
    """Serves the folders in ``repos``, by kind and name ('models/team/small').

    asked counts the downloads by file, requests everything. spoils: how often a file is still served with a byte that
    is wrong; slow_s: what a download takes besides; refuses: an HTTP status that everything is answered with;
    commit: the version that main is.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos: dict[str, Path] = {}
        self.asked: Counter[str] = Counter()
        self.requests = 0
        self.spoils: dict[str, int] = {}
        self.slow_s = 0.0
        self.refuses: int | None = None
        self.commit = COMMIT

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests += 1
        path = self.path.partition("?")[0]
        if self.server.refuses:
            self._send(self.server.refuses, b"")
        elif found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            self._of_repo("/".join(found.groups()), self._info)
        elif found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/[^/]+", path):
            self._of_repo("/".join(found.groups()), self._tree)
        elif found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind, repo, commit, name = found.groups()
            self._of_repo(f"{kind or 'models/'}{repo}", lambda folder: self._file(folder / name, name, commit))
        else:
            self._send(404, b"")

    def _of_repo(self, repo, answer) -> None:
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
            self.server.asked[name] += 1
            time.sleep(self.server.slow_s)
            if self.server.spoils.get(name, 0):
                self.server.spoils[name] -= 1
                content = content[:-1] + bytes([content[-1] ^ 1])
        self._send(200, content, {"ETag": f'"{etag(path)}"', "X-Repo-Commit": commit})

    def _send(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        with suppress(BrokenPipeError, ConnectionResetError):  # whoever asked was ended meanwhile
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
