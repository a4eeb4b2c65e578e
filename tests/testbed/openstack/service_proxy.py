"""A TCP proxy to one service, to which a test can give a fault.

With a fault, the proxy answers with status 500, hangs, is slow, or accepts no connections. With the fault "deaf", it
passes on requests that change something, but drops the answer.
"""

import contextlib
import socket
import socketserver
import threading
from typing import Literal

Fault = Literal["500", "hang", "gone", "slow", "deaf"]
CHANGES = (b"POST", b"PUT", b"PATCH", b"DELETE")
SLOW_S = 0.3
CHUNK = 65536
SERVER_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


class ServiceProxy:
    """Listens at ``outer`` and forwards to ``inner``, each an address and a port."""

    def __init__(self, outer: tuple[str, int], inner: tuple[str, int]) -> None:
        self._outer, self._inner = outer, inner
        self._fault: Fault | None = None
        self.recorded_traffic: bytearray | None = None
        """The traffic in both directions, recorded from when a test sets it until ``repair``."""
        self._mended = threading.Event()
        self._open()

    @property
    def port(self) -> int:
        """Return the port that it listens at; the system chooses it if ``outer`` has port 0."""
        return self._outer[1]

    def set_fault(self, fault: Fault) -> None:
        """Give the service a fault until ``repair``."""
        self._fault = fault
        self._mended.clear()
        if fault == "gone":
            self.close()

    def repair(self) -> None:
        if self._fault == "gone":
            self._open()
        self._fault = self.recorded_traffic = None
        self._mended.set()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _open(self) -> None:
        proxy = self

        class ConnectionHandler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy._receive(self.request)

        self._server = _Server(self._outer, ConnectionHandler)
        self._outer = (self._outer[0], self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _receive(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._fault == "500":
                client.recv(CHUNK)
            if not self._rejected(client):
                self._pass_on(client)

    def _rejected(self, client: socket.socket) -> bool:
        """Return whether the client's request is rejected; answer it according to the fault."""
        fault = self._fault
        if fault == "500":
            client.sendall(SERVER_ERROR)
            client.shutdown(socket.SHUT_WR)
            while client.recv(CHUNK):
                pass
        elif fault == "hang":
            self._mended.wait()
        return fault in ("500", "hang", "gone")

    def _pass_on(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), socket.create_connection(self._inner) as service:
            for side in (client, service):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a second part does not wait 40 ms
            lost = threading.Event()
            back = threading.Thread(target=self._answer, args=(service, client, lost), daemon=True)
            back.start()
            self._ask(client, service, lost)
            back.join()

    def _ask(self, client: socket.socket, service: socket.socket, lost: threading.Event) -> None:
        """Forward a client's requests until the proxy has a fault, which also ends kept-alive connections."""
        with contextlib.suppress(OSError):
            while (data := client.recv(CHUNK)) and not self._rejected(client):
                if self._fault == "deaf" and data.startswith(CHANGES):
                    lost.set()
                self._pass(data, service)
        _end(client, service)

    def _answer(self, service: socket.socket, client: socket.socket, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while (data := service.recv(CHUNK)) and not (lost.is_set() or self._fault == "gone"):
                self._pass(data, client)
        _end(client, service)

    def _pass(self, data: bytes, sink: socket.socket) -> None:
        if self._fault == "slow":
            self._mended.wait(SLOW_S)
        if self.recorded_traffic is not None:
            self.recorded_traffic += data
        sink.sendall(data)


def _end(*sides: socket.socket) -> None:
    for side in sides:
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
