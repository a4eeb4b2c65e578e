"""Archives that would fill the disk, write outside their folder, or are damaged; and passwords in their addresses."""

import base64
import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from experiments.cli.app import main
from experiments.errors import InputError
from experiments.inputs import archive
from experiments.inputs.archive import unpack_archive
from experiments.inputs.download import download
from experiments.system.secrets import hide_in_command, hide_secrets

RECORDS = b'{"file_name": "a.jpg", "text": "a cat"}\n'
PASSWORD = "s3cret%2F1"


def _tar(path, *members):
    with tarfile.open(path, "w:gz") as packed:
        for name, kind, linkname, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, linkname, len(content)
            packed.addfile(member, io.BytesIO(content))
    return path


DATA = ("metadata.jsonl", tarfile.REGTYPE, "", RECORDS)


def _unpack(path, tmp_path):
    return unpack_archive(path, tmp_path / "cache" / "set", "gourmetgram-captions")


@pytest.mark.parametrize("ending", ["tar.gz", "zip"])
def test_an_archive_bomb_is_rejected_and_leaves_no_files(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(archive, "ALWAYS_ALLOWED_BYTES", 1 << 20)
    path, content = tmp_path / f"bomb.{ending}", bytes(64 << 20)
    if ending == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("metadata.jsonl", content)
    else:
        _tar(path, ("metadata.jsonl", tarfile.REGTYPE, "", content))
    with pytest.raises(InputError, match="200 times as large"):
        _unpack(path, tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("ending", ["tar.gz", "zip"])
def test_an_archive_of_too_many_files_is_rejected(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(archive, "MAX_FILES", 3)
    path = tmp_path / f"many.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(path, "w") as packed:
            for number in range(4):
                packed.writestr(str(number), "")
    else:
        _tar(path, *((str(number), tarfile.REGTYPE, "", b"") for number in range(4)))
    with pytest.raises(InputError, match="more than"):
        _unpack(path, tmp_path)


@pytest.mark.parametrize(
    "members",
    [
        [("out", tarfile.SYMTYPE, "/etc", b""), ("out/x", tarfile.REGTYPE, "", b"x")],
        [("out", tarfile.SYMTYPE, "../..", b"")],
        [("a", tarfile.SYMTYPE, ".", b""), ("a/b", tarfile.SYMTYPE, "../..", b"")],
        [("hard", tarfile.LNKTYPE, "../../secret", b"")],
        [("/etc/x", tarfile.REGTYPE, "", b"x")],
        [("x/../../y", tarfile.REGTYPE, "", b"x")],
    ],
)
def test_an_archive_member_outside_the_folder_is_rejected(tmp_path, members):
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(InputError, match="would be written outside the folder"):
        _unpack(_tar(tmp_path / "set.tar.gz", *members, DATA), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "secret", "set.tar.gz"]


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_devices_and_fifos_are_not_unpacked(tmp_path, kind):
    folder = _unpack(_tar(tmp_path / "set.tar.gz", ("special", kind, "", b""), DATA), tmp_path)
    assert [path.name for path in folder.iterdir()] == ["metadata.jsonl"]


@pytest.mark.parametrize("damage", ["cut", "bits", "method", "encrypted"])
def test_a_damaged_archive_is_rejected_in_one_line(tmp_path, damage):
    path = tmp_path / ("set.tar.gz" if damage in ("cut", "bits") else "set.zip")
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("metadata.jsonl", RECORDS)
        data = bytearray(path.read_bytes())
        central = data.index(b"PK\x01\x02")
        if damage == "method":
            data[8] = data[central + 10] = 97
        else:
            data[6] |= 1
            data[central + 8] |= 1
    else:
        data = bytearray(_tar(path, DATA).read_bytes())
        data = data[: len(data) // 2] if damage == "cut" else data[:40] + bytes(20) + data[60:]
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be unpacked") as rejected:
        _unpack(path, tmp_path)
    assert "\n" not in str(rejected.value)


@pytest.fixture
def server():
    """Start a server that requires a login and records every request; /moved redirects to another host name."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            host, login = self.headers["Host"].partition(":")[0], self.headers.get("Authorization")
            seen.append((host, login))
            if self.path.startswith("/moved"):
                self.send_response(302)
                self.send_header("Location", f"http://localhost:{web.server_port}/set.tar.gz")
                self.end_headers()
                return
            good = host == "localhost" or login == f"Basic {base64.b64encode(b'user:s3cret/1').decode()}"
            self.send_response(200 if good else 401)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"data")

        def log_message(self, *_):
            pass

    seen: list[tuple[str, str | None]] = []
    with HTTPServer(("127.0.0.1", 0), Answers) as web:
        setattr(web, "seen", seen)  # noqa: B010 - for the tests
        threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        yield web
        web.shutdown()


DATA_SHA256 = hashlib.sha256(b"data").hexdigest()


def test_the_login_in_a_url_is_not_sent_to_another_host(server, tmp_path):
    base = f"http://user:{PASSWORD}@127.0.0.1:{server.server_port}"
    assert download(f"{base}/set.tar.gz", DATA_SHA256, tmp_path / "a", lambda *_: None).read_bytes() == b"data"
    download(f"{base}/moved.tar.gz", DATA_SHA256, tmp_path / "b", lambda *_: None)
    assert [bool(login) for _, login in server.seen] == [True, True, False]
    assert server.seen[-1][0] == "localhost"


@pytest.mark.parametrize(
    "address",
    [
        "http://user:hidden-1@127.0.0.1:1/x.tar.gz",
        "http://user:hidden-1@[bad/x.tar.gz",
        "https://u:hidden-1@h:port/x.tar",
    ],
)
@pytest.mark.parametrize("sha", [[], ["--data-sha256", "0" * 64]])
def test_no_error_shows_a_password(tmp_path, monkeypatch, capsys, machine, address, sha):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    words = ["run", "single_gpu_blip2", "--size", "tiny", "--row", "xxl-sgd", "--data", address, *sha]
    assert main(words) == 2
    assert "hidden-1" not in "".join(capsys.readouterr())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hidden-1" in path.read_bytes()]


def test_a_wrong_checksum_does_not_show_the_password(server, tmp_path):
    address = f"http://user:{PASSWORD}@127.0.0.1:{server.server_port}/set.tar.gz"
    with pytest.raises(InputError, match="its SHA-256 is") as rejected:
        download(address, "0" * 64, tmp_path, lambda *_: None)
    assert "s3cret" not in str(rejected.value)


def test_commands_are_stored_without_logins_and_signatures():
    words = ["run", "--data", "https://u:p1@h/x.zip?sig=p2", "--data=ftp://p3@h/x", "--notify", "json://p4"]
    assert hide_in_command(words) == [
        "run",
        "--data",
        "https://***@h/x.zip?***",
        "--data=ftp://***@h/x",
        "--notify",
        "***",
    ]
    assert hide_secrets("see https://example.com/page and a@b") == "see https://example.com/page and a@b"
