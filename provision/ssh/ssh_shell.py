"""A machine over SSH. Fabric runs commands and copies small files; OpenSSH's client copies large data and tunnels."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from fabric import Config, Connection
from paramiko import (
    AuthenticationException,
    BadHostKeyException,
    Channel,
    HostKeys,
    MissingHostKeyPolicy,
    PKey,
    SSHClient,
    SSHConfig,
    SSHException,
)
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential

from provision.errors import BadHostKey, ConnectionDropped, LoginRejected, NotReached, SiteError, UnknownHost
from provision.ssh.identities import Identities
from provision.ssh.login import CONNECT_TIMEOUT_S, Login, SshConfigHost, changed_host_key_message
from provision.ssh.process import CHUNK_BYTES, InputChunks, feed_stdin
from provision.ssh.shell import TIMEOUT_SLACK_S, OutputSink, Shell, problem_in_words
from provision.ssh.ssh_config import resolve_host, resolve_jump_hosts

CONNECT_LIMIT_S = 60.0
"""How long failed connections are tried again."""
KEEPALIVE_INTERVAL_S = 15
DEAD_AFTER_S = 30
"""A connection without a response for this time counts as dropped."""
FORWARD_LIMIT_S = 5.0
"""Longest wait for a tunnel to open."""
DROPPED_CODE = 255
"""OpenSSH's exit code after a dropped connection."""
FAST_CIPHER = "aes128-gcm@openssh.com"


class SshShell(Shell):
    """A machine over SSH. Every connection accepts only the recorded host key of the machine.

    Tries to connect for ``connect_limit_s`` seconds, then raises NotReached.
    """

    _dropped_code = DROPPED_CODE

    def __init__(self, login: Login | SshConfigHost, connect_limit_s: float = CONNECT_LIMIT_S) -> None:
        self.where = login.name if isinstance(login, SshConfigHost) else login.host
        self._login = login
        self._connect_limit_s = connect_limit_s
        self._connection: Connection | None = None

    @contextmanager
    def forward(self, remote_port: int) -> Iterator[int]:
        """Yield a local port that is forwarded to ``remote_port`` on the machine's loopback address."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port: int = free.getsockname()[1]
        program, _ = self._program("cat", f"-L127.0.0.1:{port}:127.0.0.1:{remote_port}", "-oExitOnForwardFailure=yes")
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as tunnel:
            try:
                _wait_until_open(port)
                yield port
            finally:
                tunnel.terminate()

    def close(self) -> None:
        """Close the connection; the next command opens a new one."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _program(self, command: str, *options: str) -> tuple[list[str], None]:
        """Return the OpenSSH client's command line; connect first, so that a failure is reported as NotReached."""
        self._ensure_connection()
        more = [
            *options,
            f"-oServerAliveInterval={KEEPALIVE_INTERVAL_S}",
            f"-oServerAliveCountMax={DEAD_AFTER_S // KEEPALIVE_INTERVAL_S}",
        ]
        if isinstance(self._login, Login):
            more.append(f"-oCiphers=^{FAST_CIPHER}")
        program, *arguments = self._login.arguments()
        return [program, *more, *arguments, command], None

    def _execute(self, command: str, source: InputChunks, sink: OutputSink, timeout_s: float) -> tuple[int, bytes]:
        channel = self._open_channel()
        try:
            channel.settimeout(timeout_s)
            channel.exec_command(command)
            feeder = feed_stdin(source, channel.sendall, channel.shutdown_write)
            err = bytearray()
            listener = Thread(target=_collect_stderr, args=(channel, err), daemon=True)
            listener.start()
            while chunk := channel.recv(CHUNK_BYTES):
                sink(chunk)
            code = channel.recv_exit_status()
        except (SSHException, EOFError, TimeoutError, ConnectionError) as problem:
            self.close()
            raise ConnectionDropped(
                f"{self.where}: the connection dropped while a command ran ({problem_in_words(problem)})"
            ) from None
        finally:
            channel.close()
        listener.join(TIMEOUT_SLACK_S)
        feeder.join(TIMEOUT_SLACK_S)
        if code < 0:
            self.close()
            raise ConnectionDropped(f"{self.where}: the connection dropped while a command ran")
        return code, bytes(err)

    def _open_channel(self) -> Channel:
        """Open a channel for one command; reconnect once if the connection has dropped."""
        with suppress(SSHException, EOFError, ConnectionError):
            return self._ensure_connection().transport.open_session(timeout=CONNECT_TIMEOUT_S)
        self.close()
        try:
            return self._ensure_connection().transport.open_session(timeout=CONNECT_TIMEOUT_S)
        except (SSHException, EOFError, ConnectionError) as problem:
            raise NotReached(f"{self.where}: {problem_in_words(problem)}") from None

    def _ensure_connection(self) -> Connection:
        if self._connection is None or not self._connection.is_connected:
            attempts = Retrying(
                stop=stop_after_delay(self._connect_limit_s),
                wait=wait_exponential(multiplier=0.5, max=8),
                retry=retry_if_exception(lambda problem: type(problem) is NotReached),
                reraise=True,
            )
            self._connection = attempts(self._open_connection)
        return self._connection

    def _open_connection(self) -> Connection:
        """Open a new connection."""
        connection = _new_connection(self._login)
        try:
            connection.open()
        except SiteError:
            raise
        except BadHostKeyException:
            raise BadHostKey(self._changed_host_key_message()) from None
        except AuthenticationException as problem:
            raise LoginRejected(
                f"{self.where}: rejects the login as {connection.user} ({problem_in_words(problem)}); "
                "check the user and the SSH key"
            ) from None
        except socket.gaierror as problem:
            raise self._unknown_host_error(str(connection.host), problem) from None
        except (SSHException, EOFError, OSError) as problem:
            raise NotReached(f"{self.where}: {problem_in_words(problem)}") from None
        connection.transport.set_keepalive(KEEPALIVE_INTERVAL_S)
        with suppress(AttributeError, OSError):
            connection.transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_S * 1000)
        return connection

    def _unknown_host_error(self, host: str, problem: socket.gaierror) -> NotReached:
        """Return the error for a host name that has no address; NotReached if the name server may have failed."""
        if problem.errno != socket.EAI_NONAME:
            return NotReached(f"{self.where}: {problem_in_words(problem)}")
        if host != self.where:
            return UnknownHost(f"{self.where}: its HostName {host} is unknown; correct it in ~/.ssh/config")
        return UnknownHost(
            f"{host}: unknown host; add to ~/.ssh/config: "
            f"'Host {host}', 'HostName' with the address of its login node, 'User' with your name there"
        )

    def _changed_host_key_message(self) -> str:
        if isinstance(self._login, Login):
            return changed_host_key_message(self._login)
        fix = f"if that is expected, remove the old one: ssh-keygen -R {self.where}, and log in once with ssh"
        return f"{self.where}: its host key differs from the known one; {fix}"


class _RejectUnknownHostKeys(MissingHostKeyPolicy):  # type: ignore[misc]
    """Rejects every unknown host key."""

    def missing_host_key(self, client: SSHClient, hostname: str, key: PKey) -> None:
        raise BadHostKey(f"{hostname}: its host key is unknown; log in once with ssh and verify the key")


def _new_connection(login: Login | SshConfigHost) -> Connection:
    return _pinned_connection(login) if isinstance(login, Login) else _configured_connection(login)


def _pinned_connection(login: Login) -> Connection:
    """Return a connection that accepts only the key recorded under the login's alias."""
    connection = Connection(
        login.host,
        login.user,
        login.port,
        config=_fabric_config(resolve_jump_hosts(login.host, login.arguments()[1:])),
        connect_timeout=CONNECT_TIMEOUT_S,
    )
    known = HostKeys(str(login.known_hosts)) if login.known_hosts.exists() else HostKeys()
    _pin_host_keys(connection, known, login.alias)
    _pin_hops(connection.gateway)
    return connection


def _configured_connection(login: SshConfigHost) -> Connection:
    connection = Connection(
        login.name, config=_fabric_config(resolve_host(login.name)), connect_timeout=CONNECT_TIMEOUT_S
    )
    _pin_hops(connection)
    return connection


def _fabric_config(ssh_config: str) -> Config:
    """Return fabric's settings for all connections, including those to jump hosts. ssh_config: text of the file."""
    identities = {"authentication": {"strategy_class": Identities}}
    return Config(lazy=True, ssh_config=SSHConfig.from_text(ssh_config), overrides=identities)


def _pin_hops(hop: Connection | str | None) -> None:
    """Accept only host keys in the user's known_hosts, for the host of ``hop`` and each jump host on the way to it."""
    while isinstance(hop, Connection):
        files = hop.ssh_config.get("userknownhostsfile", "~/.ssh/known_hosts").split()
        known = HostKeys()
        for path in [Path(name).expanduser() for name in (*files, "/etc/ssh/ssh_known_hosts")]:
            if path.exists():
                known.load(str(path))
        _pin_host_keys(hop, known, hop.ssh_config.get("hostkeyalias") or _known_hosts_name(hop))
        hop = hop.gateway


def _pin_host_keys(connection: Connection, known: HostKeys, alias: str) -> None:
    """Accept only the host keys that ``known`` lists under ``alias``."""
    connection.client.set_missing_host_key_policy(_RejectUnknownHostKeys())
    for kind, key in (known.lookup(alias) or {}).items():
        connection.client.get_host_keys().add(_known_hosts_name(connection), kind, key)


def _known_hosts_name(connection: Connection) -> str:
    """Return the machine's name in known_hosts."""
    return str(connection.host) if connection.port == 22 else f"[{connection.host}]:{connection.port}"


def _collect_stderr(channel: Channel, errors: bytearray) -> None:
    with suppress(OSError, EOFError, SSHException):
        while chunk := channel.recv_stderr(CHUNK_BYTES):
            errors += chunk


def _wait_until_open(port: int) -> None:
    """Wait until the tunnel's client listens on ``port``, at most FORWARD_LIMIT_S."""
    until = time.monotonic() + FORWARD_LIMIT_S
    while time.monotonic() < until:
        with suppress(ConnectionError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.01)
