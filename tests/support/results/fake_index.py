"""A fake package index: a folder of tiny wheels. A fake measurement adds up the VALUE of the module in each wheel."""

import base64
import hashlib
import runpy
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.blame.environment import Environment
from experiments.blame.observation import Observation
from experiments.blame.pins import Pin, Pins


def wheel(folder: Path, name: str, version: str, value: str = "0", needs: Sequence[str] = (), log: str = "") -> None:
    """Write a wheel whose module has ``VALUE = value``; log: the text of its change log."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}.py": f"VALUE = {value}\n",
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: fake\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if log:
        files[f"{name}_docs/CHANGELOG.md"] = log
    record = "".join(f"{path},{_digest(text)},{len(text.encode())}\n" for path, text in files.items())
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(path, text)


def pins(versions: Mapping[str, str]) -> Pins:
    return {name: Pin(version) for name, version in versions.items()}


def fake_observation(peak_gib: float, outcome: str = "fits") -> Observation:
    """Return an observation of one row."""
    figures = {"row": {"peak_gib": peak_gib}} if outcome == "fits" else {}
    return Observation(outcomes={"row": outcome}, reasons={}, measured=figures, statuses={"row/peak_gib": "pass"})


def values(environment: Environment) -> dict[str, float]:
    """Return the VALUE of each installed module."""
    return {name: runpy.run_path(str(environment.site_packages / f"{name}.py"))["VALUE"] for name in environment.pins}


def _digest(text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    return f"sha256={digest}"
