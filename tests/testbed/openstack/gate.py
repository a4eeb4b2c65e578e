"""The way to one service, which a test can shut: a TCP proxy that passes, answers 500, hangs, is slow or not there."""

import contextlib
import socket
import socketserver
import threading
from typing import Literal

Fault = Literal["500", "hang", "gone", "slow"]
SLOW_S = 0.3
SERVER_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


class Gate:
    """Listens at ``outer`` and passes on to ``inner``; each an address and a port."""

    def __init__(self, outer: tuple[str, int], inner: tuple[str, int]) -> None:
        self._outer, self._inner = outer, inner
        self._fault: Fault | None = None
        self._mended = threading.Event()
        self._open()

    def shut(self, fault: Fault) -> None:
        """The service has that fault until it is mended."""
        self._fault = fault
        self._mended.clear()
        if fault == "gone":
            self.close()

    def mend(self) -> None:
        if self._fault == "gone":
            self._open()
        self._fault = None
        self._mended.set()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _open(self) -> None:
        gate = self

        class Visit(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                gate._receive(self.request)

        self._server = _Server(self._outer, Visit)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _receive(self, client: socket.socket) -> None:
        if self._fault == "500":
            client.recv(65536)
            client.sendall(SERVER_ERROR)
        elif self._fault == "hang":
            self._mended.wait()
        else:
            self._pass_on(client)

    def _pass_on(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), socket.create_connection(self._inner) as service:
            back = threading.Thread(target=self._pump, args=(service, client), daemon=True)
            back.start()
            self._pump(client, service)
            back.join()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Copies until one side ends or the way is shut: a connection kept alive must not slip past that."""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._fault == "slow":
                    self._mended.wait(SLOW_S)
                elif self._fault:
                    break
                sink.sendall(data)
        for side in (source, sink):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
