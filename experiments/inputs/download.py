"""Download archives, resume interrupted downloads, and verify the SHA-256."""

import base64
import fcntl
import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.errors import InputError
from experiments.inputs.archive import archive_suffix
from experiments.system.files import file_sha256
from experiments.system.secrets import hide_secrets

CHUNK_BYTES = 1 << 20
MAX_ATTEMPTS = 4
TIMEOUT_S = 60.0
RETRY_WAIT_S = 0.5
DownloadCallback = Callable[[int, int | None], None]
"""Function of the number of downloaded bytes and the total number, which is None if unknown."""


def is_url(source: str) -> bool:
    """Return True if ``source`` is an HTTP or HTTPS URL."""
    return re.match(r"https?://", source) is not None


def download(url: str, sha256: str, folder: Path, on_progress: DownloadCallback) -> Path:
    """Download the archive at ``url`` into ``folder``, resuming an interrupted download; return its path.

    on_progress: called with the number of downloaded bytes and the total number of bytes. Raises InputError if the
    download fails, or if the checksum differs. A file with another checksum is deleted.
    """
    path = folder / (sha256 + archive_suffix(url.partition("?")[0]))
    with _download_lock(path):
        return path if path.exists() else _download_verified(url, sha256, path, on_progress)


def download_without_checksum(url: str, name: str, folder: Path, on_progress: DownloadCallback) -> str:
    """Download an archive of unknown checksum to the path that ``download`` uses; return its SHA-256.

    name: file name of the unfinished download. Raises InputError if the download fails.
    """
    suffix = archive_suffix(url.partition("?")[0])
    with _download_lock(folder / (name + suffix)):
        partial = folder / f"{name}{suffix}.part"
        _download(url, partial, on_progress)
        sha256 = file_checksum(partial, None)
        partial.replace(folder / (sha256 + suffix))
        return sha256


def file_checksum(path: Path, expected: str | None, name: str | None = None) -> str:
    """Return the SHA-256 of a file. Raises InputError if the file is unreadable or the SHA-256 is not ``expected``.

    name: name of the file in messages; by default its path.
    """
    try:
        actual = file_sha256(path)
    except OSError as error:
        raise InputError(f"--data {path}: cannot be read ({error.strerror})") from None
    check_sha256(actual, expected, name or str(path))
    return actual


def check_sha256(actual: str, expected: str | None, name: str) -> None:
    """Raise InputError if a checksum differs from ``expected``. None allows every checksum."""
    if expected and actual != expected.lower():
        raise InputError(f"--data {name}: its SHA-256 is {actual}, but --data-sha256 is {expected}")


@contextmanager
def _download_lock(path: Path) -> Iterator[None]:
    """Hold a lock while a file is downloaded to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download_verified(url: str, sha256: str, path: Path, on_progress: DownloadCallback) -> Path:
    partial = path.with_name(path.name + ".part")
    _download(url, partial, on_progress)
    try:
        file_checksum(partial, sha256, hide_secrets(url))
    except InputError:
        partial.unlink()
        raise
    return partial.replace(path)


def _download(url: str, partial: Path, on_progress: DownloadCallback) -> None:
    for tries_left in reversed(range(MAX_ATTEMPTS)):
        try:
            _resume_download(url, partial, on_progress)
            break
        except urllib.error.HTTPError as error:
            raise InputError(
                f"--data {hide_secrets(url)}: the server responds with {error.code} {error.reason}"
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not tries_left:
                raise InputError(f"--data {hide_secrets(url)}: cannot be downloaded ({error})") from None
            time.sleep(RETRY_WAIT_S)


def _request(url: str) -> urllib.request.Request:
    """Return the request of a URL. The URL's login is sent as a header, but not after a redirect to another host."""
    parts = urllib.parse.urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=host)))  # noqa: S310 - is_url
    if login:
        encoded = base64.b64encode(urllib.parse.unquote_to_bytes(login)).decode()
        request.add_unredirected_header("Authorization", f"Basic {encoded}")
    return request


def _resume_download(url: str, partial: Path, on_progress: DownloadCallback) -> None:
    """Append the missing bytes to the file ``partial``; download all bytes if the server ignores the header Range."""
    done = partial.stat().st_size if partial.exists() else 0
    request = _request(url)
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310 - is_url allows HTTP and HTTPS
    except urllib.error.HTTPError as error:
        if error.code != 416 or not done:
            raise
        return  # 416: no bytes after the requested position, so the file is complete
    with response, partial.open("ab" if response.status == 206 else "wb") as file:
        done = file.tell()
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        while block := response.read(CHUNK_BYTES):
            done += file.write(block)
            on_progress(done, total)
        if total is not None and done < total:
            raise ConnectionError(f"connection dropped after {done} of {total} bytes")
