"""The live view in a browser, and the text that its page shows."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.system.files import CODE_FOLDER
from tests.support.services.chromium import Page

CATCH_VIEW = """Object.defineProperty(Object.prototype, "websocket_url", {
  configurable: true,
  set(url) {
    window.view = this;
    Object.defineProperty(this, "websocket_url", {value: url});
  },
});
window.shown = () => {
  const buffer = window.view?.terminal.buffer.active;
  return [...Array(buffer?.length ?? 0).keys()].map((n) => buffer.getLine(n).translateToString(true)).join("\\n");
};"""
"""Makes the text of the terminal, which is drawn on a canvas, available as the function shown()."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve the view of the run in ``folder``; yield the address, with its token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "experiments", "watch", str(folder), "--browser", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CODE_FOLDER), *sys.path]), "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        found = re.search(r"http://127\.0\.0\.1:\d+/\?token=[\w-]+", process.stdout.readline())
        assert found
        yield found[0]
        process.terminate()


def open_view(page: Page, address: str, width: int = 1280) -> None:
    """Open the view in a window of that width (CSS pixels) and wait until it shows a run."""
    page.call("Page.addScriptToEvaluateOnNewDocument", source=CATCH_VIEW)
    page.set_window(width, "dark")
    page.call("Page.navigate", url=address)
    page.until("/rows done/.test(window.shown?.())", 60)
