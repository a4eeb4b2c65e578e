"""Compare what commands show on real terminals with stored screens. TESTBED_RENEW=1 writes the screens again."""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from experiments.cli.app import main
from experiments.suites.suite import suite_named
from experiments.system.files import CODE_FOLDER
from tests.support.services.terminal import screen_text, terminal_output

SCREENS = CODE_FOLDER / "tests" / "experiments" / "cli" / "screens"
WIDTHS = (80, 120, 160)


def check_screen(name: str, width: int, text: str) -> None:
    """Compare a screen with the stored one."""
    path = SCREENS / f"{name}.{width}.txt"
    if os.environ.get("TESTBED_RENEW"):
        SCREENS.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def shown(run: Callable[[], object], width: int) -> str:
    """Return what a terminal of ``width`` columns shows after ``run``."""
    text = screen_text(terminal_output(run, width), width)
    suite_named.cache_clear()  # it may have the user's own suites, which the next command must not know
    return text


def _main_and_code(words: list[str]) -> None:
    print(f"exit code {main(words)}")


def session(lines: Iterable[str], width: int, places: Mapping[str, str]) -> str:
    """Return the screen after several command lines, each shown as typed, with its exit code unless that is 0."""
    screens = []
    for line in lines:
        words = [places.get(word, word) for word in line.split()]
        text = shown(partial(_main_and_code, words), width)
        screens += [f"$ testbed {line}", text.removesuffix("exit code 0\n")]
    return "\n".join(screens)
