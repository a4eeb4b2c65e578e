"""Run the cells of a notebook as Jupyter does, without what needs a screen, a keyboard or a server."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from experiments.system.files import read_notebook

DEFAULT_EXTENSION = "storemagic"
"""IPython's extension that Jupyter always loads."""
PRESENTATION_MAGICS = ("clear", "cls", "connect_info", "edit", "less", "man", "more", "qtconsole", "tensorboard")
"""Magics that only show something or start a server. They do nothing."""
PRESENTATION_EXTENSIONS = ("tensorboard", "tensorboard.notebook")
"""Extensions whose magics are all in PRESENTATION_MAGICS. They are not loaded, and need not be installed."""
INLINE, NO_SCREEN = "inline", "agg"
"""Backend of matplotlib that writes figures to the notebook, and one that shows none."""


class NotebookShell(InteractiveShell):
    """IPython's shell for the cells of a notebook. No window opens, and no server starts."""

    def enable_gui(self, gui: str | None = None) -> None:
        """Do nothing, because there is no screen."""

    def enable_matplotlib(self, gui: str | None = None) -> Any:
        """Write figures to the output if the cell asks for ``inline``; otherwise show none."""
        enable: Any = super().enable_matplotlib
        return enable(INLINE if gui == INLINE else NO_SCREEN)

    def ask_exit(self) -> None:
        """End the program: a cell called ``exit()`` or ``quit()``."""
        raise SystemExit

    def run_line_magic(self, magic_name: str, line: str, _stack_depth: int = 1) -> Any:
        """Run a magic; skip the loading of an extension that only presents."""
        if magic_name in ("load_ext", "reload_ext") and line.strip() in PRESENTATION_EXTENSIONS:
            return None
        return super().run_line_magic(magic_name, line, _stack_depth + 1)


def run_notebook(path: Path) -> None:
    """Run the code cells of a notebook from top to bottom, with IPython's magics.

    Raises InputError if the file is not a notebook.
    """
    notebook = read_notebook(path)
    shell: Any = NotebookShell.instance()
    shell.user_module = sys.modules["__main__"] = ModuleType("__main__")
    shell.user_ns = vars(shell.user_module)
    shell.init_user_ns()
    shell.extension_manager.load_extension(DEFAULT_EXTENSION)
    for name in PRESENTATION_MAGICS:
        shell.register_magic_function(lambda _: None, magic_name=name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source, store_history=True).raise_error()
