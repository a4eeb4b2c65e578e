"""Start the kernels of notebooks: forked from the warm process if there is one."""

import os
import time
from pathlib import Path
from queue import Empty
from typing import Any

import nbformat
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import port_names
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from traitlets import Type, default

from experiments.system import warm_start
from experiments.system.files import CODE_FOLDER
from provision.temporary import TemporaryFolder

ROW_NOTEBOOK = CODE_FOLDER / "experiments" / "notebooks" / "row.ipynb"
SOCKET_NAME_BYTES = 107
"""Longest name of a Unix socket, bytes (Linux, unix(7))."""


REPLY_WITHIN_S = 1.0
IDLE_WITHIN_S = 0.2


def prepare_notebooks() -> None:
    """Prepare once what every notebook needs, so that forks of this process inherit it.

    Reads the entry points of all installed packages, and compiles the schema of notebooks.
    """
    KernelProvisionerFactory.instance()
    nbformat.read(ROW_NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


class NoDelayKernelClient(AsyncKernelClient):
    """Client that is ready as soon as the kernel has answered a request on its shell channel and its IOPub channel.

    The client of jupyter_client waits another 0.2 s for messages on the IOPub channel.
    """

    async def wait_for_ready(self, timeout: float | None = None) -> None:
        """Wait until the kernel answers. Raises RuntimeError if the kernel has ended, or after ``timeout`` seconds.

        The request is repeated, because the answer is lost while this client is not yet connected to the IOPub channel.
        """
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while not await self._answers(self.kernel_info()):
            if not await self.is_alive():
                raise RuntimeError("the kernel died before it answered")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the kernel did not answer within {timeout} s")

    async def _answers(self, request: str) -> bool:
        """Return whether the kernel replies to the request and then reports that it is idle again."""
        try:
            reply = await self.get_shell_msg(timeout=REPLY_WITHIN_S)
            while not _is_idle_after(request, await self.get_iopub_msg(timeout=IDLE_WITHIN_S)):
                pass
        except Empty:
            return False
        self._handle_kernel_info_reply(reply)
        return True


def _is_idle_after(request: str, message: dict[str, Any]) -> bool:
    state = message["content"].get("execution_state")
    return bool(state == "idle" and message["parent_header"].get("msg_id") == request)


class WarmKernelManager(AsyncKernelManager):
    """Kernel manager that starts the kernel's module through warm_start.

    The kernel's channels are Unix sockets in a folder that only this user can open. TCP ports are open to all users of
    a machine, and another program may take a port between its choice and its use.
    """

    client_factory = Type(NoDelayKernelClient)
    _folder: TemporaryFolder | None = None

    @default("transport")
    def _transport_default(self) -> str:
        """Return 'ipc' for Unix sockets, or 'tcp' if the path of the temporary folder is too long for their names."""
        longest = f"{os.path.splitext(self.connection_file)[0]}-ipc-{len(port_names)}"
        return "ipc" if len(os.fsencode(longest)) <= SOCKET_NAME_BYTES else "tcp"

    @default("connection_file")
    def _connection_file_default(self) -> str:
        """Return a file in the folder of the warm process, if there is one. The runner removes this folder."""
        warm = os.environ.get(warm_start.ROW_SOCKET_VARIABLE)
        self._folder = TemporaryFolder("kernel", Path(warm).parent if warm else None)
        return str(self._folder.path / "kernel.json")

    def cleanup_ipc_files(self) -> None:
        """Remove the folder of the kernel's connection file and sockets."""
        if self._folder:
            self._folder.remove()
            self._folder = None

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        """Return the command of the kernel, `python -m ipykernel_launcher ...`, with warm_start before the module."""
        command: list[str] = super().format_kernel_cmd(extra_arguments)
        module = command.index("-m") + 1
        return [
            *command[:module],
            *warm_start.module_prefix(os.environ, warm_start.ROW_SOCKET_VARIABLE),
            *command[module:],
        ]


prepare_notebooks()
