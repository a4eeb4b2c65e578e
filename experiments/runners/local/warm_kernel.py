"""Kernels of notebooks that start from the warm process, if there is one."""

import os
import shutil
import tempfile
from pathlib import Path

from jupyter_client.manager import AsyncKernelManager
from traitlets import CaselessStrEnum, default

from experiments.system import warm_start


class WarmKernelManager(AsyncKernelManager):
    """Kernel manager that starts the kernel's module through warm_start.

    The kernel's channels are Unix sockets in a folder that only this user can open. TCP ports are open to all users of
    a machine, and another program may take a port between its choice and its use.
    """

    transport = CaselessStrEnum(["tcp", "ipc"], default_value="ipc", config=True)

    @default("connection_file")
    def _connection_file_default(self) -> str:
        """Return a file in the warm process's folder, which its runner removes even if it kills this row."""
        warm = os.environ.get(warm_start.WARM_SOCKET_VARIABLE)
        return str(Path(tempfile.mkdtemp(prefix="kernel-", dir=Path(warm).parent if warm else None), "kernel.json"))

    def cleanup_ipc_files(self) -> None:
        """Remove the folder of the kernel's sockets."""
        shutil.rmtree(Path(self.connection_file).parent, ignore_errors=True)

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        """Return the command of the kernel, `python -m ipykernel_launcher ...`, with warm_start before the module."""
        command: list[str] = super().format_kernel_cmd(extra_arguments)
        module = command.index("-m") + 1
        return [*command[:module], *warm_start.module_prefix(os.environ), *command[module:]]
