"""Run Blazar's tempest tests, in their own environment: runner.py TASK, a JSON object.

TASK: ``config``: tempest's configuration file. ``services``: URLs by the first part of a path, as an all-in-one site
serves them; ``port``: where this program forwards these paths on ``address``. ``pattern``: a regular expression of the
tests' names. ``out``: file for the outcome of each test as JSON.
"""

import http.server
import json
import os
import re
import sys
import threading
import time
import unittest
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

FORWARDED = ("X-Auth-Token", "Content-Type", "Accept")


class Proxy(http.server.BaseHTTPRequestHandler):
    """Forwards /compute/... and /reservation/... to the services; tests of the API expect one address for all."""

    def __init__(self, services: dict[str, str], *request: Any) -> None:
        self.services = services
        super().__init__(*request)

    def forward(self) -> None:
        _, service, path = self.path.split("/", 2)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: self.headers[name] for name in FORWARDED if name in self.headers}
        asked = urllib.request.Request(f"{self.services[service]}/{path}", body or None, headers, method=self.command)
        try:
            answer = urllib.request.urlopen(asked)
        except urllib.error.HTTPError as problem:
            answer = problem
        with answer:
            text = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_DELETE = forward

    def log_message(self, *args: object) -> None:
        """Log nothing."""


class Outcomes(unittest.TestResult):
    """Keeps the outcome of each test: passed, failed or skipped, with the last line of its reason."""

    def __init__(self) -> None:
        super().__init__()
        self.tests: list[dict[str, Any]] = []
        self._begun = 0.0

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802 - unittest names it so
        super().startTest(test)
        self._begun = time.monotonic()

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self._keep(test, "passed", "")

    def addError(self, test: unittest.TestCase, err: Any = None, details: Any = None) -> None:  # noqa: N802
        self._keep(test, "failed", _error_text(err, details))

    addFailure = addError  # noqa: N815

    def addSkip(self, test: unittest.TestCase, reason: str = "", details: Any = None) -> None:  # noqa: N802
        self._keep(test, "skipped", reason or _error_text(None, details))

    def _keep(self, test: unittest.TestCase, outcome: str, message: str) -> None:
        seconds = round(time.monotonic() - self._begun)
        self.tests.append({"test": test.id(), "outcome": outcome, "seconds": seconds, "message": message})
        print(outcome, test.id(), message, flush=True)


def _error_text(err: Any, details: Any) -> str:
    if err:
        return f"{err[0].__name__}: {err[1]}".strip().replace("\n", " ")[:500]
    texts = [content.as_text() for name, content in (details or {}).items() if "traceback" in name or name == "reason"]
    lines = [line for text in texts for line in text.strip().splitlines()]
    return " ".join(lines[-3:])[:500]


def main(task: dict[str, Any]) -> None:
    """Forward, find the tests, run those of the pattern, and write their outcomes."""
    front = http.server.ThreadingHTTPServer((task["address"], task["port"]), partial(Proxy, task["services"]))
    threading.Thread(target=front.serve_forever, daemon=True).start()
    os.environ["TEMPEST_CONFIG_DIR"], os.environ["TEMPEST_CONFIG"] = os.path.split(task["config"])
    import blazar_tempest_plugin
    import tempest.scenario.manager  # noqa: F401 - the plugin uses it without importing it
    from gabbi import driver

    build = driver.build_tests
    address = f"http://{task['address']}:{task['port']}/"
    driver.build_tests = lambda *args, **more: build(*args, **{**more, "url": address})
    folder = Path(blazar_tempest_plugin.__file__).parent
    found = unittest.TestLoader().discover(str(folder / "tests"), top_level_dir=str(folder.parent))
    result = Outcomes()
    unittest.TestSuite(_matching(found, re.compile(task["pattern"]))).run(result)
    Path(task["out"]).write_text(json.dumps(result.tests))


def _matching(suite: Any, pattern: re.Pattern[str]) -> list[Any]:
    """Return the tests that match. Those of a gabbi file belong together and stay in their suite."""
    if isinstance(suite, unittest.TestSuite) and type(suite).__name__ != "GabbiSuite":
        return [one for part in suite for one in _matching(part, pattern)]
    return [suite] if any(pattern.search(test.id()) for test in _tests(suite)) else []


def _tests(suite: Any) -> Iterator[Any]:
    return iter(suite) if isinstance(suite, unittest.TestSuite) else iter([suite])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
