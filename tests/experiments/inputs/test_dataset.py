"""Data sets in folders and archives: they are verified, downloaded once, and unpacked safely. The server is local."""

import gzip
import hashlib
import io
import shutil
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from experiments.errors import InputError
from experiments.inputs import dataset as data_set
from experiments.inputs import fetch_dataset, known_archive
from experiments.inputs.archive import archive_suffix
from experiments.inputs.dataset import folder_sha256
from experiments.inputs.download import download
from experiments.inputs.requirements import CAPTIONS_DATASET
from experiments.runners.slurm.staging import as_archive
from experiments.suites.choices import HUB, SYNTHETIC
from experiments.suites.suite import suites_in_group

RECORDS = '{"file_name": "1.jpg", "text": "soup"}\n'


def prepare(source, sha256, cache, *watch, reads=(CAPTIONS_DATASET,)):
    """Return the data set for rows that read this kind of data."""
    return data_set.prepare_dataset(source, sha256, cache, reads, *watch)


def archive_with(kind: str, name: str = "set/metadata.jsonl", text: str = RECORDS) -> bytes:
    """An archive of one file."""
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, text)
    else:
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return file.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class FakeWebServer(HTTPServer):
    """A server of one file."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.content = archive_with("tar")
        self.breaks = 0
        self.ranges: list[str | None] = []
        self.resumes = True
        self.url = f"http://127.0.0.1:{self.server_port}/set.tar.gz"


@pytest.fixture
def server():
    """Start a server of ``content``. Its first ``breaks`` responses end early; ``ranges`` has the requested ranges."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requested = self.headers.get("Range")
            web.ranges.append(requested)
            if not self.path.startswith("/set."):
                self.send_error(404)
                return
            begin = int(requested.removeprefix("bytes=").rstrip("-")) if requested and web.resumes else 0
            body = web.content[begin:]
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if web.breaks:
                web.breaks -= 1
                body = body[: len(body) // 2]
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    web = FakeWebServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    yield web
    web.shutdown()
    web.server_close()


def test_synthetic_data_needs_no_files_and_rejects_a_checksum(tmp_path):
    found = prepare("synthetic", None, tmp_path)
    assert (found.data, found.sha256) == ("synthetic", None)
    with pytest.raises(InputError, match="--data-sha256: not allowed with --data synthetic"):
        prepare("synthetic", "ab", tmp_path)


@pytest.mark.parametrize("dataset", ["alpaca2k", "imdb"])
def test_a_published_data_set_is_read_from_the_hub(tmp_path, dataset):
    found = prepare(HUB, None, tmp_path, reads=("constant", dataset))
    assert (found.data, found.sha256) == ("hub", None)
    with pytest.raises(InputError, match="--data-sha256: not allowed with --data hub"):
        prepare(HUB, "ab", tmp_path, reads=(dataset,))


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        (
            (CAPTIONS_DATASET,),
            r"^--data hub: gourmetgram-captions is not on the Hugging Face hub; allowed: synthetic, a folder",
        ),
        (("constant",), r"^--data hub: the requested rows read synthetic texts only; allowed: synthetic$"),
        (
            ("imdb", CAPTIONS_DATASET),
            r"^--data hub: the requested rows read gourmetgram-captions and imdb; "
            r"with --row, choose rows that read the same data set$",
        ),
    ],
)
def test_a_run_on_real_data_reads_exactly_one_data_set(tmp_path, reads, message):
    with pytest.raises(InputError, match=message):
        prepare(HUB, None, tmp_path, reads=reads)
    assert prepare(SYNTHETIC, None, tmp_path, reads=reads).data == SYNTHETIC


@pytest.mark.parametrize("place", ["", "set"])
def test_a_folder_of_texts_is_used_for_rows_that_read_texts(tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "reviews.jsonl").write_text('{"text": "good"}\n')
    assert prepare(str(tmp_path), None, tmp_path, reads=("imdb",)).data == str(tmp_path / place)
    with pytest.raises(InputError, match=r"has no captions; a data folder for gourmetgram-captions has metadata.jsonl"):
        prepare(str(tmp_path), None, tmp_path)


def test_a_folder_of_captions_is_rejected_for_rows_that_read_texts(tmp_path):
    (tmp_path / "metadata.jsonl").write_text(RECORDS)
    with pytest.raises(InputError, match="has no texts; a data folder for imdb has JSON, JSONL, CSV or Parquet files"):
        prepare(str(tmp_path), None, tmp_path, reads=("imdb",))


def test_an_archive_of_texts_is_unpacked(tmp_path):
    archive = tmp_path / "set.zip"
    archive.write_bytes(archive_with("zip", "set/train.json", '{"text": "good"}'))
    found = prepare(str(archive), None, tmp_path / "cache", reads=("imdb",))
    assert found.data.endswith("/set")
    with pytest.raises(InputError, match="has no captions"):
        prepare(str(archive), None, tmp_path / "cache")


def test_the_checksum_of_a_folder_depends_on_its_contents(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    before = prepare(str(tmp_path), None, tmp_path)
    assert (before.data, before.sha256) == (str(tmp_path), folder_sha256(tmp_path))
    (tmp_path / "metadata.csv").write_text("file_name,caption\n")
    with pytest.raises(InputError, match="its SHA-256 is"):
        prepare(str(tmp_path), before.sha256, tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such folder or archive"),
        (lambda path: path.mkdir(), r"has no captions; a data folder for .* has metadata.jsonl or metadata.csv"),
        (lambda path: path.write_text("text"), r"not a folder or an archive; allowed: .tar.gz, .tgz, .gz, .tar, .zip"),
    ],
)
def test_a_data_source_that_is_missing_or_has_no_data_is_rejected(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(InputError, match=message):
        prepare(str(tmp_path / "data"), None, tmp_path / "cache")


def test_an_unreadable_folder_is_rejected(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "iterdir", denied)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        prepare(str(tmp_path), None, tmp_path)


@pytest.mark.parametrize("ending", ["tar.gz", "tgz", "zip"])
def test_an_archive_is_unpacked_once_under_its_checksum(tmp_path, ending):
    archive = tmp_path / f"set.{ending}"
    content = archive_with("zip" if ending == "zip" else "tar")
    archive.write_bytes(content)
    found = prepare(str(archive), sha256(content).upper(), tmp_path / "cache")
    assert found.data == str(tmp_path / "cache" / "data" / sha256(content) / "set")
    assert (tmp_path / "cache" / "data" / sha256(content) / "set" / "metadata.jsonl").read_text() == RECORDS
    assert prepare(str(archive), None, tmp_path / "cache") == found


def test_a_checksum_mismatch_names_both_checksums_and_leaves_no_file(tmp_path):
    archive = tmp_path / "set.zip"
    archive.write_bytes(archive_with("zip"))
    with pytest.raises(InputError, match=f"its SHA-256 is {sha256(archive_with('zip'))[:20]}.*--data-sha256 is abc"):
        prepare(str(archive), "abc", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_that_would_write_elsewhere_is_rejected(tmp_path, kind):
    archive = tmp_path / ("set.zip" if kind == "zip" else "set.tgz")
    archive.write_bytes(archive_with(kind, "../metadata.jsonl"))
    with pytest.raises(InputError, match="cannot be unpacked"):
        prepare(str(archive), None, tmp_path / "cache")
    assert list((tmp_path / "cache" / "data").iterdir()) == []


def archive_with_link(kind: bytes, name: str) -> bytes:
    """Return an archive with records and a link of this kind to ``name``."""
    made = io.BytesIO(gzip.decompress(archive_with("tar")))
    with tarfile.open(fileobj=made, mode="a") as archive:
        link = tarfile.TarInfo("set/link")
        link.type, link.linkname = kind, name
        archive.addfile(link)
    return made.getvalue()


@pytest.mark.parametrize(
    ("kind", "name"), [(tarfile.LNKTYPE, "set/metadata.jsonl"), (tarfile.SYMTYPE, "metadata.jsonl")]
)
def test_links_within_an_archive_are_kept(tmp_path, kind, name):
    archive = tmp_path / "set.tar"
    archive.write_bytes(archive_with_link(kind, name))
    found = prepare(str(archive), None, tmp_path / "cache")
    assert (Path(found.data) / "link").read_text() == RECORDS


@pytest.mark.parametrize(("kind", "name"), [(tarfile.LNKTYPE, "../outside"), (tarfile.SYMTYPE, "../../outside")])
def test_links_out_of_an_archive_are_rejected(tmp_path, kind, name):
    archive = tmp_path / "set.tar"
    archive.write_bytes(archive_with_link(kind, name))
    with pytest.raises(InputError, match=r"cannot be unpacked \('set/link' would be written outside the folder\)"):
        prepare(str(archive), None, tmp_path / "cache")


def test_a_broken_archive_is_rejected(tmp_path):
    archive = tmp_path / "set.tgz"
    archive.write_bytes(archive_with("tar")[:40])
    with pytest.raises(InputError, match="cannot be unpacked"):
        prepare(str(archive), None, tmp_path / "cache")


def test_a_url_needs_a_checksum(tmp_path):
    with pytest.raises(InputError, match="a URL needs --data-sha256"):
        prepare("https://data.test/set.zip", None, tmp_path)


def test_a_url_is_downloaded_once_with_progress(tmp_path, server):
    reported = []
    for _ in range(2):
        found = prepare(server.url, sha256(server.content), tmp_path, lambda *done: reported.append(done))
    assert found.data.endswith("/set")
    assert server.ranges == [None]
    assert reported == [(len(server.content), len(server.content))]


def test_an_interrupted_download_is_resumed(tmp_path, server):
    server.breaks = 1
    assert prepare(server.url, sha256(server.content), tmp_path).data.endswith("/set")
    assert server.ranges == [None, f"bytes={len(server.content) // 2}-"]


def test_from_a_server_without_range_requests_the_whole_file_is_downloaded_again(tmp_path, server):
    server.breaks, server.resumes = 1, False
    assert prepare(server.url, sha256(server.content), tmp_path).data.endswith("/set")


def test_a_download_with_a_wrong_checksum_leaves_no_file(tmp_path, server):
    with pytest.raises(InputError, match=r"its SHA-256 is .* is 00"):
        prepare(server.url, "00", tmp_path)
    assert not list(tmp_path.rglob("*.part"))
    assert not (tmp_path / "data").exists()


def test_a_download_request_that_the_server_rejects_is_a_user_error(tmp_path, server):
    with pytest.raises(InputError, match="the server responds with 404"):
        prepare(server.url.replace("set", "other"), "00", tmp_path)


def test_an_unreachable_server_is_a_user_error(tmp_path, server, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(InputError, match="cannot be downloaded"):
        prepare("http://127.0.0.1:9/set.zip", "00", tmp_path)


def remote(source, cache, sha256_=None, reads=("imdb",)):
    """Return the data set of a cluster with that cache, after its download."""
    found = data_set.prepare_remote_dataset(source, sha256_, str(cache), reads)
    if found.user_path:
        Path(found.artifact.name).parent.mkdir(parents=True, exist_ok=True)
        with as_archive(found.user_path) as archive:
            shutil.copy(archive, found.artifact.name)
    fetch_dataset.fetch_dataset(found.artifact)
    return found


@pytest.mark.parametrize("name", ["reviews.jsonl", "set/reviews.jsonl"])
def test_the_path_of_data_on_a_cluster_is_known_before_the_download(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "set.tgz"
    archive.write_bytes(archive_with("tar", name, '{"text": "good"}'))
    found = remote(str(archive), tmp_path / "cache")
    assert found.data == f"{tmp_path}/cache/data/{sha256(archive.read_bytes())}-imdb"
    assert (Path(found.data) / "reviews.jsonl").exists()


def test_a_folder_has_the_same_checksum_here_and_on_a_cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    (folder := tmp_path / "kept" / "set").mkdir(parents=True)
    (folder / "reviews.jsonl").write_text('{"text": "good"}\n')
    found = remote(str(folder.parent), tmp_path / "cache")
    assert found.sha256 == prepare(str(folder.parent), None, tmp_path, reads=("imdb",)).sha256
    assert folder_sha256(Path(found.data)) == found.sha256


def test_a_checksum_mismatch_on_a_cluster_is_retried_once(tmp_path, monkeypatch, server):
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path))
    good, server.content = server.content, b"damaged"
    found = data_set.prepare_remote_dataset(server.url, sha256(good), str(tmp_path), [CAPTIONS_DATASET])
    with pytest.raises(InputError, match="its SHA-256 is"):
        fetch_dataset.fetch_dataset(found.artifact)
    assert len(server.ranges) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://data.test/set.tgz", "a URL needs --data-sha256"),
        ("/nowhere", "no such folder or archive"),
    ],
)
def test_data_that_a_cluster_cannot_read_is_rejected_at_once(tmp_path, source, message):
    with pytest.raises(InputError, match=message):
        data_set.prepare_remote_dataset(source, None, str(tmp_path), ["imdb"])
    assert data_set.prepare_remote_dataset(HUB, None, "", ["imdb"]) == data_set.DataSet(HUB)


@pytest.fixture
def lab_archive(server, monkeypatch):
    """The lab's archive at this machine's server."""
    archive = known_archive.KnownArchive.model_construct(address=server.url, source="test")
    monkeypatch.setattr(known_archive, "known_archives", lambda: {CAPTIONS_DATASET: archive})
    return server


def locate(cache, sha256=None):
    return known_archive.locate_archive(CAPTIONS_DATASET, sha256, cache, lambda *_: None)


def test_the_first_download_of_the_labs_archive_records_its_checksum(lab_archive, tmp_path):
    digest = sha256(lab_archive.content)
    assert locate(tmp_path) == (lab_archive.url, digest)
    assert prepare(*locate(tmp_path), tmp_path).sha256 == digest
    assert lab_archive.ranges == [None]
    shutil.rmtree(tmp_path / "downloads")
    shutil.rmtree(tmp_path / "data" / digest)
    lab_archive.content = archive_with("tar", text="other\n")
    with pytest.raises(InputError, match=f"its SHA-256 is {sha256(lab_archive.content)}, but .* {digest}"):
        prepare(*locate(tmp_path), tmp_path)


def test_a_given_checksum_of_the_labs_archive_is_checked_at_the_first_download(lab_archive, tmp_path):
    with pytest.raises(InputError, match="but --data-sha256 is 0000"):
        prepare(*locate(tmp_path, "0000"), tmp_path)
    assert known_archive.locate_archive("~/captions", None, tmp_path, lambda *_: None) == ("~/captions", None)


def test_every_archive_in_the_catalog_has_a_data_set_that_rows_read():
    rows = [suite.settings(row, suite.cards[0]) for suite in suites_in_group("single") for row in suite.rows]
    assert set(known_archive.known_archives()) <= {settings.dataset for settings in rows}
    assert all(archive_suffix(one.address) for one in known_archive.known_archives().values())


def test_two_simultaneous_downloads_of_the_same_file_send_one_request(tmp_path, server):
    checksum, found = sha256(server.content), []

    def fetch():
        found.append(download(server.url, checksum, tmp_path, lambda *_: time.sleep(0.2)))

    both = [threading.Thread(target=fetch) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    assert server.ranges == [None]
    assert found == [tmp_path / f"{checksum}.tar.gz"] * 2
