"""Kernels of notebooks that start from the warm process, if there is one."""

import os
from pathlib import Path

from jupyter_client.connect import port_names
from jupyter_client.manager import AsyncKernelManager
from traitlets import default

from experiments.system import warm_start
from provision.temporary import TemporaryFolder

SOCKET_NAME_BYTES = 107
"""Longest name of a Unix socket, bytes (Linux, unix(7))."""


class WarmKernelManager(AsyncKernelManager):
    """Kernel manager that starts the kernel's module through warm_start.

    The kernel's channels are Unix sockets in a folder that only this user can open. TCP ports are open to all users of
    a machine, and another program may take a port between its choice and its use.
    """

    _folder: TemporaryFolder | None = None

    @default("transport")
    def _transport_default(self) -> str:
        """Return ``tcp`` if the folder of temporary files has a path too long for names of sockets."""
        longest = f"{os.path.splitext(self.connection_file)[0]}-ipc-{len(port_names)}"
        return "ipc" if len(os.fsencode(longest)) <= SOCKET_NAME_BYTES else "tcp"

    @default("connection_file")
    def _connection_file_default(self) -> str:
        """Return a file in the warm process's folder, which the runner removes even if the runner kills this row."""
        warm = os.environ.get(warm_start.WARM_SOCKET_VARIABLE)
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
        return [*command[:module], *warm_start.module_prefix(os.environ), *command[module:]]
