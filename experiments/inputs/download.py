"""Downloads of archives: resumed where they broke off, checked by their SHA-256."""

import fcntl
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from experiments.errors import InputError
from experiments.inputs.archive import _ending
from experiments.system.files import file_sha256

CHUNK_BYTES = 1 << 20
TRIES = 4
TIMEOUT_S = 60.0
Watch = Callable[[int, int | None], None]


def is_url(source: str) -> bool:
    return re.match(r"https?://", source) is not None


def download(url: str, sha256: str, folder: Path, watch: Watch) -> Path:
    """The archive at ``url``, going on where an earlier download broke off; a wrong checksum leaves nothing behind."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (sha256 + _ending(url.partition("?")[0]))
    with path.with_name(path.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return path if path.exists() else _downloaded(url, sha256, path, watch)


def _downloaded(url: str, sha256: str, path: Path, watch: Watch) -> Path:
    partial = path.with_name(path.name + ".part")
    for left in reversed(range(TRIES)):
        try:
            _fetch(url, partial, watch)
            break
        except urllib.error.HTTPError as error:
            raise InputError(f"--data {url}: the server answers {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            if not left:
                raise InputError(f"--data {url}: cannot be fetched ({error})") from None
            time.sleep(0.5)
    try:
        _checked_file(partial, sha256, url)
    except InputError:
        partial.unlink()
        raise
    return partial.replace(path)


def _fetch(url: str, partial: Path, watch: Watch) -> None:
    there = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not there:
            raise
        return
    with answer, partial.open("ab" if answer.status == 206 else "wb") as file:
        there = file.tell()
        length = answer.headers.get("Content-Length")
        total = there + int(length) if length else None
        while block := answer.read(CHUNK_BYTES):
            there += file.write(block)
            watch(there, total)
        if total is not None and there < total:
            raise ConnectionError(f"broke off after {there} of {total} bytes")


def _checked_file(path: Path, sha256: str | None, name: str | None = None) -> str:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise InputError(f"--data {path}: cannot be read ({error.strerror})") from None
    _check(found, sha256, name or str(path))
    return found


def _check(found: str, wanted: str | None, name: str) -> None:
    if wanted and found != wanted.lower():
        raise InputError(f"--data {name}: its SHA-256 is {found}, and --data-sha256 says {wanted}")
