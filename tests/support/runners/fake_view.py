"""A view that records what it shows."""

from io import StringIO

from rich.console import Console

from experiments.runners.progress import View


class Watched(View):
    """A view that records what it shows."""

    def __init__(self) -> None:
        self.text = StringIO()
        super().__init__(Console(file=self.text))
        self.shown: list = []

    def shows(self, states, done, total, left_s):
        self.shown.append((states, done, total, left_s))

    @property
    def lines(self) -> list[str]:
        return self.text.getvalue().splitlines()
