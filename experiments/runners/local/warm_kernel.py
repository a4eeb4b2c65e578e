"""Kernels of notebooks that start from the warm process, if there is one."""

import os

from jupyter_client.manager import AsyncKernelManager

from experiments.system import warm_start


class WarmKernelManager(AsyncKernelManager):
    """Kernel manager that starts the kernel's module through warm_start."""

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        """Return the command of the kernel, `python -m ipykernel_launcher ...`, with warm_start before the module."""
        command: list[str] = super().format_kernel_cmd(extra_arguments)
        module = command.index("-m") + 1
        return [*command[:module], *warm_start.module_prefix(os.environ), *command[module:]]
