"""A machine over SSH: fabric for commands and small files, the OpenSSH client for much data and for tunnels."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from fabric import Config, Connection
from paramiko import (
    Agent,
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

from provision.errors import BadHostKey, LineCut, LoginRefused, NotReached, SiteError
from provision.ssh.login import CONNECT_S, Login, SshConfigHost
from provision.ssh.process import CHUNK, Source, feed_stdin
from provision.ssh.shell import TIMEOUT_SLACK_S, Shell, Sink, _reason

PATIENCE_S = 60.0
ALIVE_S = 15
DEAD_S = 30
FORWARD_S = 5.0
LOST = 255
FAST_CIPHER = "aes128-gcm@openssh.com"


class SshShell(Shell):
    """A machine that is logged in to by SSH.

    Its host key has to be the one that is kept. It is tried for ``patience_s`` seconds before NotReached is raised.
    """

    _lost = LOST

    def __init__(self, login: Login | SshConfigHost, patience_s: float = PATIENCE_S) -> None:
        self.where = login.name if isinstance(login, SshConfigHost) else login.host
        self._login = login
        self._patience_s = patience_s
        self._connection: Connection | None = None

    @contextmanager
    def forward(self, remote_port: int) -> Iterator[int]:
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
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _program(self, command: str, *options: str) -> tuple[list[str], None]:
        """OpenSSH's client; the machine is waited for, and says what is wrong with it, on the line of all commands."""
        self._connected()
        more = [*options, f"-oServerAliveInterval={ALIVE_S}", f"-oServerAliveCountMax={DEAD_S // ALIVE_S}"]
        if isinstance(self._login, Login):
            more.append(f"-oCiphers=^{FAST_CIPHER}")
        program, *told = self._login.arguments()
        return [program, *more, *told, command], None

    def _execute(self, command: str, source: Source, sink: Sink, timeout_s: float) -> tuple[int, bytes]:
        channel = self._session()
        try:
            channel.settimeout(timeout_s)
            channel.exec_command(command)
            feeder = feed_stdin(source, channel.sendall, channel.shutdown_write)
            err = bytearray()
            listener = Thread(target=_drain, args=(channel, err), daemon=True)
            listener.start()
            while chunk := channel.recv(CHUNK):
                sink(chunk)
            code = channel.recv_exit_status()
        except (SSHException, EOFError, TimeoutError, ConnectionError) as problem:
            self.close()
            raise LineCut(f"{self.where}: the line was cut while a command ran ({_reason(problem)})") from None
        finally:
            channel.close()
        listener.join(TIMEOUT_SLACK_S)
        feeder.join(TIMEOUT_SLACK_S)
        if code < 0:
            self.close()
            raise LineCut(f"{self.where}: the line was cut while a command ran")
        return code, bytes(err)

    def _session(self) -> Channel:
        """A channel for one command. A line that turns out to be dead is made anew: nothing was asked on it yet."""
        with suppress(SSHException, EOFError, ConnectionError):
            return self._connected().transport.open_session(timeout=CONNECT_S)
        self.close()
        try:
            return self._connected().transport.open_session(timeout=CONNECT_S)
        except (SSHException, EOFError, ConnectionError) as problem:
            raise NotReached(f"{self.where}: {_reason(problem)}") from None

    def _connected(self) -> Connection:
        if self._connection is None or not self._connection.is_connected:
            tries = Retrying(
                stop=stop_after_delay(self._patience_s),
                wait=wait_exponential(multiplier=0.5, max=8),
                retry=retry_if_exception(lambda problem: type(problem) is NotReached),
                reraise=True,
            )
            self._connection = tries(self._opened)
        return self._connection

    def _opened(self) -> Connection:
        """A fresh connection."""
        connection = _connection(self._login)
        try:
            connection.open()
        except SiteError:
            raise
        except BadHostKeyException:
            raise BadHostKey(f"{self.where}: shows another host key than the one that is kept for it") from None
        except AuthenticationException as problem:
            raise LoginRefused(f"{self.where}: refuses the login as {connection.user} ({_reason(problem)})") from None
        except (SSHException, EOFError, OSError) as problem:
            raise NotReached(f"{self.where}: {_reason(problem)}") from None
        connection.transport.set_keepalive(ALIVE_S)
        with suppress(AttributeError, OSError):
            connection.transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_S * 1000)
        return connection


class _Refuse(MissingHostKeyPolicy):  # type: ignore[misc]
    """No host key is taken on trust."""

    def missing_host_key(self, client: SSHClient, hostname: str, key: PKey) -> None:
        raise BadHostKey(f"{hostname}: its host key is not known; log in to it once with ssh, and check the key")


def _connection(login: Login | SshConfigHost) -> Connection:
    return _pinned(login) if isinstance(login, Login) else _configured(login)


def _pinned(login: Login) -> Connection:
    """The key that is kept under the alias is that of the address; nothing else is known."""
    connection = Connection(
        login.host,
        login.user,
        login.port,
        config=Config(lazy=True, ssh_config=SSHConfig()),
        connect_timeout=CONNECT_S,
        connect_kwargs={**_identity(login.key), "look_for_keys": False, "allow_agent": False},
    )
    kept = HostKeys(str(login.known_hosts)) if login.known_hosts.exists() else HostKeys()
    _pin_host_keys(connection, kept, login.alias)
    return connection


def _configured(login: SshConfigHost) -> Connection:
    config = Config(lazy=True)
    config.load_ssh_config()
    connection = Connection(login.name, config=config, connect_timeout=CONNECT_S)
    hop = connection
    while isinstance(hop, Connection):
        files = hop.ssh_config.get("userknownhostsfile", "~/.ssh/known_hosts").split()
        known = HostKeys()
        for path in [Path(name).expanduser() for name in (*files, "/etc/ssh/ssh_known_hosts")]:
            if path.exists():
                known.load(str(path))
        _pin_host_keys(hop, known, hop.ssh_config.get("hostkeyalias") or _name_of(hop))
        hop = hop.gateway
    return connection


def _pin_host_keys(connection: Connection, known: HostKeys, alias: str) -> None:
    """Accept from the connection's machine the keys that ``known`` has under ``alias``, and no other."""
    connection.client.set_missing_host_key_policy(_Refuse())
    for kind, key in (known.lookup(alias) or {}).items():
        connection.client.get_host_keys().add(_name_of(connection), kind, key)


def _name_of(connection: Connection) -> str:
    """The machine's name among known hosts."""
    return str(connection.host) if connection.port == 22 else f"[{connection.host}]:{connection.port}"


def _identity(file: Path) -> dict[str, object]:
    """The private key: as the agent has it, else its file."""
    public = file.with_name(f"{file.name}.pub")
    told = public.read_text().split() if public.exists() else []
    for key in Agent().get_keys():
        if len(told) > 1 and key.get_base64() == told[1]:
            return {"pkey": key}
    return {"key_filename": str(file)}


def _drain(channel: Channel, into: bytearray) -> None:
    with suppress(OSError, EOFError, SSHException):
        while chunk := channel.recv_stderr(CHUNK):
            into += chunk


def _wait_until_open(port: int) -> None:
    """Until the tunnel's client listens on ``port``."""
    until = time.monotonic() + FORWARD_S
    while time.monotonic() < until:
        with suppress(ConnectionError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.01)
