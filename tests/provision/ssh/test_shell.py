"""Shells on this machine and over a real sshd behave equally; and faults of the connection."""

import os
import subprocess
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from provision.errors import (
    BadHostKey,
    CommandFailed,
    ConnectionDropped,
    LoginRejected,
    NotReached,
    TimedOut,
)
from provision.ssh.shell import LocalShell
from provision.ssh.ssh_shell import SshShell
from tests.support.processes.waiting import wait_for
from tests.support.services.sshd import PROGRAM, Sshd, new_key

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs OpenSSH's sshd (package openssh-server)")


@pytest.fixture
def ssh_shell(sshd):
    shell = SshShell(sshd.login())
    yield shell
    shell.close()


@pytest.fixture(params=["local", "ssh_shell"])
def shell(request):
    return LocalShell() if request.param == "local" else request.getfixturevalue("ssh_shell")


def test_a_command_returns_its_output_and_exit_code(shell):
    done = shell.run("echo out; echo err >&2; exit 3", check=False)
    assert (done.code, done.out, done.err) == (3, "out\n", "err\n")


def test_a_failed_command_is_reported_in_one_line_with_its_exit_code_and_last_output(shell):
    with pytest.raises(CommandFailed, match=r"no such thing \(exit code 4 of: echo first") as failed:
        shell.run("echo first >&2; echo no such thing >&2; exit 4\n# more")
    assert failed.value.code == 4
    assert "\n" not in str(failed.value)


def test_a_command_begins_in_the_home_folder_and_reads_its_input(shell):
    assert shell.run("cat; pwd", input=b"in\n").out.split("\n")[0] == "in"
    assert shell.run("pwd").out == shell.run("cd && pwd").out


def test_input_that_is_not_read_is_not_an_error(shell):
    assert shell.run("true", input=b"x" * 10_000_000).code == 0


def test_large_output_on_stdout_and_stderr_does_not_block(shell):
    done = shell.run("head -c 5000000 /dev/zero >&2; head -c 5000000 /dev/zero")
    assert (len(done.out), len(done.err)) == (5_000_000, 5_000_000)


def test_a_command_beyond_its_time_limit_is_killed_on_the_machine(shell, tmp_path):
    began = time.monotonic()
    with pytest.raises(TimedOut, match=r"timed out after 1 s: sleep 300"):
        shell.run(f"sleep 300 && touch {tmp_path}/ended", timeout_s=1)
    assert time.monotonic() - began < 10
    while "sleep 300" in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.split("\n"):
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_uploaded_and_downloaded_files_are_identical(shell, tmp_path, size):
    data = os.urandom(size)
    remote = str(tmp_path / "some folder" / "it's a file")
    (tmp_path / "own").write_bytes(data)
    shell.put(tmp_path / "own", remote)
    assert shell.get(remote) == data
    shell.put(b"other", remote)
    assert shell.get(remote) == b"other"


def test_reading_a_missing_file_fails(shell, tmp_path):
    with pytest.raises(CommandFailed, match="No such file"):
        shell.get(str(tmp_path / "nothing"))


def test_an_upload_to_a_full_disk_keeps_the_old_file(shell, tmp_path):
    with pytest.raises(CommandFailed, match="full"):
        shell.put(b"x" * 100_000, "/dev/full/../full")
    shell.put(b"old", str(tmp_path / "file"))
    (tmp_path / "file.part").symlink_to("/dev/full")
    with pytest.raises(CommandFailed):
        shell.put(b"new" * 10_000, str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"old"


def test_output_arrives_while_the_command_still_runs(shell):
    times = []
    shell.stream("echo a; sleep 0.5; echo b", lambda chunk: times.append(time.monotonic()))
    assert times[-1] - times[0] > 0.3


def test_large_output_is_read_while_input_is_sent(shell):
    with shell.open_output("cat; sleep 0.5; head -c 3000000 /dev/zero", source=(b"a" * 10,)) as stream:
        assert stream.read(10) == b"a" * 10
        began = time.monotonic()
        assert stream.read() == bytes(3_000_000)
        assert time.monotonic() - began > 0.3


def test_reading_the_output_of_a_failed_command_raises_an_error(shell):
    with (
        pytest.raises(CommandFailed, match=r"no such thing \(exit code 4 of: echo a"),
        shell.open_output("echo a; echo no such thing >&2; exit 4") as stream,
    ):
        assert stream.read() == b"a\n"


def test_a_command_that_does_not_end_is_killed_after_its_output_was_read(shell):
    with (
        pytest.raises(TimedOut, match=r"timed out after 1 s: sleep 301"),
        shell.open_output("sleep 301; true", timeout_s=1),
    ):
        pass


def test_a_command_is_killed_if_its_output_is_no_longer_read(shell):
    def give_up(stream) -> None:
        stream.read(1000)
        raise OSError("no room")

    began = time.monotonic()
    with pytest.raises(OSError, match="no room"), shell.open_output("yes 302") as stream:
        give_up(stream)
    assert time.monotonic() - began < 5


def test_a_port_of_the_remote_loopback_interface_is_forwarded(shell):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with shell.forward(server.server_port) as port:
            assert urlopen(f"http://127.0.0.1:{port}/").read() == b"hello"
        server.shutdown()


def test_a_tunnel_connects_to_a_server_that_starts_later(ssh_shell):
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler, bind_and_activate=False)
    server.server_bind()
    with ssh_shell.forward(server.server_address[1]) as port:
        with pytest.raises(OSError, match=r"reset|closed|refused"):
            urlopen(f"http://127.0.0.1:{port}", timeout=5)
        server.server_activate()
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(HTTPError, match="501"):
            urlopen(f"http://127.0.0.1:{port}", timeout=5)
    server.server_close()


def drop_connections_after(file, sshd) -> None:
    """Drop the connections to ``sshd`` as soon as ``file`` exists."""

    def drop() -> None:
        wait_for(file.exists)
        sshd.drop_connections()

    threading.Thread(target=drop, daemon=True).start()


def test_a_command_whose_connection_drops_is_not_repeated(sshd, ssh_shell, tmp_path):
    drop_connections_after(tmp_path / "journal", sshd)
    with pytest.raises(ConnectionDropped, match="the connection dropped"):
        ssh_shell.run(f"echo once >> {tmp_path}/journal; sleep 30")
    assert ssh_shell.run(f"cat {tmp_path}/journal").out == "once\n"


def test_a_dropped_connection_is_not_mistaken_for_the_end_of_a_stream(sshd, ssh_shell):
    came = []
    with (
        pytest.raises(ConnectionDropped, match="the connection dropped"),
        ssh_shell.open_output("echo a; sleep 30") as stream,
    ):
        came += [stream.read(2), sshd.drop_connections(), stream.read()]
    assert came == [b"a\n", None, b""]


def test_a_repeatable_command_is_repeated_after_a_dropped_connection(sshd, ssh_shell, tmp_path):
    journal = tmp_path / "journal"
    drop_connections_after(journal, sshd)
    command = f"[ -e {journal} ] && again=1; echo once >> {journal}; [ $again ] || sleep 30; echo done"
    assert ssh_shell.run(command, repeatable=True).out == "done\n"
    assert journal.read_text() == "once\nonce\n"


def test_a_connection_that_dropped_between_commands_is_reopened(sshd, ssh_shell):
    ssh_shell.run("true")
    sshd.drop_connections()
    time.sleep(0.2)
    assert ssh_shell.run("echo again").out == "again\n"


def test_an_upload_whose_connection_drops_creates_no_incomplete_file(sshd, tmp_path):
    target = tmp_path / "file"
    part = tmp_path / "file.part"

    def stop_in_the_middle() -> None:
        while not (part.exists() and part.stat().st_size):
            time.sleep(0.01)
        sshd.stop()

    threading.Thread(target=stop_in_the_middle, daemon=True).start()
    with pytest.raises(NotReached):
        SshShell(sshd.login(), connect_limit_s=0.1).put(bytes(400_000_000), str(target))
    sshd.start()
    time.sleep(0.5)
    assert 0 < part.stat().st_size < 400_000_000
    assert not target.exists()


def test_the_shell_waits_until_a_machine_that_was_unreachable_answers_again(sshd, ssh_shell):
    ssh_shell.run("true")
    sshd.stop()
    answers = []
    asking = threading.Thread(target=lambda: answers.append(ssh_shell.run("echo back").out))
    asking.start()
    time.sleep(1.5)
    sshd.start()
    asking.join()
    assert answers == ["back\n"]


def test_a_machine_that_does_not_answer_within_the_limit_is_reported_in_one_line(sshd):
    login = replace(sshd.login(), port=1)
    with pytest.raises(NotReached, match=r"127\.0\.0\.1: .*Unable to connect") as problem:
        SshShell(login, connect_limit_s=1).run("true")
    assert "\n" not in str(problem.value)


def test_a_changed_host_key_is_rejected(sshd):
    login = sshd.login()
    sshd.new_host_key()
    with pytest.raises(BadHostKey, match="host key differs from the pinned one"):
        SshShell(login).run("true")


def test_only_a_host_key_that_is_stored_under_the_alias_of_the_login_is_accepted(sshd):
    login = sshd.login()
    login.known_hosts.write_text(login.known_hosts.read_text().replace(login.alias, "[127.0.0.1]:22,other"))
    with pytest.raises(BadHostKey, match="host key is unknown"):
        SshShell(login).run("true")


def test_an_unauthorized_key_is_rejected_at_once(sshd, tmp_path):
    with pytest.raises(LoginRejected, match="rejects the login as"):
        SshShell(replace(sshd.login(), key=new_key(tmp_path / "other"))).run("true")


@pytest.fixture
def chatty_login(tmp_path):
    """Return a login whose shell prints, on both streams, before every command."""
    start = tmp_path / "chatty.sh"
    start.write_text(
        '#!/bin/sh\nprintf "\\033[31mWelcome\\033[0m\\nto it"\necho motd >&2\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    start.chmod(0o755)
    server = Sshd(tmp_path / "sshd", {"ForceCommand": str(start)}).start()
    yield server, start
    server.stop()


def test_text_printed_by_a_login_shell_is_not_part_of_a_command_s_output(chatty_login, tmp_path):
    server, _ = chatty_login
    shell = SshShell(server.login())
    assert shell.run("echo in").out == "in\n"
    assert shell.run("true").out == ""
    assert shell.run("head -c 300000 /dev/zero").out == "\0" * 300_000
    shell.put(b"data", str(tmp_path / "file"))
    assert shell.get(str(tmp_path / "file")) == b"data"
    with shell.open_output("echo in; echo out") as stream:
        assert stream.read() == b"in\nout\n"
    with pytest.raises(CommandFailed, match="exit code 3"):
        shell.run("exit 3")
    shell.close()


@pytest.mark.parametrize(
    ("line", "message"), [("echo This account is locked", "is locked"), ("yes", "does not stop printing")]
)
def test_a_login_shell_that_does_not_run_commands_is_reported(chatty_login, line, message):
    server, start = chatty_login
    start.write_text(f"#!/bin/sh\n{line}\n")
    with pytest.raises(LoginRejected, match=message):
        SshShell(server.login()).run("echo in")
