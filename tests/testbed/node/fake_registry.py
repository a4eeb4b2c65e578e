"""A fake registry with one image, over HTTP: as much as `docker pull` needs."""

import base64
import contextlib
import gzip
import hashlib
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


@contextlib.contextmanager
def serve_image(address: str, archive: Path, name: str, login: str = "", busy: int = 0) -> Iterator[str]:
    """Serve the image of ``archive`` (an output of `docker save` with one layer) at ``address``; yield its reference.

    name: repository:tag. login: USER:PASSWORD that every request needs. busy: how many requests are rejected at first,
    as by Docker Hub's limit.
    """
    authorization = f"Basic {base64.b64encode(login.encode()).decode()}" if login else None
    rejections = iter(range(busy))
    repository, tag = name.split(":")
    manifest, blobs = _contents(archive)
    served = {f"/v2/{repository}/blobs/{digest}": ("application/octet-stream", data) for digest, data in blobs.items()}
    paths = [f"/v2/{repository}/manifests/{key}" for key in (tag, _digest(manifest))]
    served |= dict.fromkeys(paths, (MANIFEST, manifest)) | {"/v2/": ("application/json", b"{}")}

    class Handler(BaseHTTPRequestHandler):
        default_request_version = "HTTP/1.0"  # Docker tries TLS first and needs a status line to fall back to HTTP.

        def do_GET(self) -> None:
            kind, data = served.get(self.path, ("", b""))
            status = 200 if kind else 404
            if authorization and self.headers["Authorization"] != authorization:
                status, kind, data = 401, *_error_body("UNAUTHORIZED", "authentication required")
            elif "manifests" in self.path and next(rejections, None) is not None:
                status, kind, data = 429, *_error_body("TOOMANYREQUESTS", "You have reached your pull rate limit")
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="fake"')
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Docker-Content-Digest", _digest(data))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((address, 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"{address}:{server.server_port}/{name}"
        finally:
            server.shutdown()


def _error_body(code: str, message: str) -> tuple[str, bytes]:
    return "application/json", json.dumps({"errors": [{"code": code, "message": message}]}).encode()


def _contents(archive: Path) -> tuple[bytes, dict[str, bytes]]:
    """Return the manifest, and its blobs by digest."""
    with tarfile.open(archive) as tar:
        listed = json.loads(tar.extractfile("manifest.json").read())[0]
        config = tar.extractfile(listed["Config"]).read()
        layer = gzip.compress(tar.extractfile(listed["Layers"][0]).read(), compresslevel=1, mtime=0)
    described = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _descriptor(CONFIG, config),
        "layers": [_descriptor(LAYER, layer)],
    }
    return json.dumps(described).encode(), {_digest(data): data for data in (config, layer)}


def _descriptor(kind: str, data: bytes) -> dict[str, object]:
    return {"mediaType": kind, "size": len(data), "digest": _digest(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
