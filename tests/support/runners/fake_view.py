"""A view that records what it shows."""

from io import StringIO
from typing import Any

from rich.console import Console

from experiments.runners.progress import View


class RecordingView(View):
    """A view that records what it shows."""

    def __init__(self) -> None:
        self.text = StringIO()
        super().__init__(Console(file=self.text))
        self.shown: list[tuple[Any, ...]] = []

    def show_rows(self, states, done, total, left_s):
        self.shown.append((states, done, total, left_s))

    @property
    def lines(self) -> list[str]:
        return self.text.getvalue().splitlines()
