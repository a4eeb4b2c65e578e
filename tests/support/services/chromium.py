"""Headless Chromium, controlled through its debugging pipe.

The messages of the Chrome DevTools Protocol are JSON, ended by a zero byte.
"""

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

import pytest

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe", "about:blank")
WATCH = """window.problems = [];
addEventListener("error", (event) => problems.push(event.message));
addEventListener("securitypolicyviolation", (event) => problems.push(event.blockedURI));"""
UNTIL = """new Promise((done) => {{
  const look = setInterval(() => {{ if ({condition}) {{ clearInterval(look); done(true); }} }}, 50);
  setTimeout(() => {{ clearInterval(look); done(false); }}, {timeout_ms});
}})"""


def chromium_path() -> str:
    """Return the path of Chromium; skips the test without it, and fails it in CI."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("no Chromium on the PATH (apt-get install chromium)")
    return str(found)


class Page:
    """One tab. requests: the URLs that it has requested so far."""

    def __init__(self, chromium_path: str, home: Path) -> None:
        self.requests: list[str] = []
        self._session: dict[str, str] = {}
        self._sent, self._buffer = 0, b""
        (read_commands, self._write), (self._read, write_answers) = _high_pipe(), _high_pipe()

        def as_chromium_wants_them() -> None:
            os.dup2(read_commands, 3)
            os.dup2(write_answers, 4)

        self._process = subprocess.Popen(
            [chromium_path, f"--user-data-dir={home}", *FLAGS],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=as_chromium_wants_them,
        )
        os.close(read_commands)
        os.close(write_answers)

    def __enter__(self) -> Self:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        self.call("Network.enable")
        self.call("Page.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        self._process.wait(30)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the response to one command. Raises RuntimeError if Chromium rejects it or ends."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._sent:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def set_window(self, width: int, scheme: str) -> None:
        """Set the width of the window (CSS pixels) and the preferred color scheme ('light' or 'dark')."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression, after awaiting it."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise RuntimeError(f"{script}: {done['exceptionDetails']}")
        return done["result"].get("value")

    def until(self, condition: str, timeout_s: float = 30) -> None:
        """Wait until a JavaScript condition is true. Raises AssertionError after the time limit."""
        assert self.evaluate(UNTIL.format(condition=condition, timeout_ms=int(1000 * timeout_s))), f"never: {condition}"

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._read, 1 << 16)
            if not read:
                raise RuntimeError("Chromium ended")
            self._buffer += read
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)


def _high_pipe() -> tuple[int, int]:
    """Return a pipe that does not use descriptors 3 and 4, which Chromium uses for its messages."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low)
    for end in low:
        os.close(end)
    return high  # type: ignore[return-value]
