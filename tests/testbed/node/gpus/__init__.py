"""Fake GPUs of a node: a fake nvidia-smi, device nodes, and a CDI spec that adds both to containers.

Fakes: the GPUs and their driver. Real: everything that handles them (Slurm's gres, Docker's devices, the roles).
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

SMI = Path(__file__).with_name("nvidia-smi")
ON_NODE = "/usr/bin/nvidia-smi"
STATE = "/etc/pretend-gpus"
A100 = "NVIDIA A100-SXM4-80GB"
DRIVER = "580.95.05"
Mode = Literal["fine", "broken", "mismatched", "missing"]


def install_fake_gpus(
    root: Path, cards: Sequence[str] = (A100, A100), mode: Mode = "fine", driver: str = DRIVER
) -> None:
    """Add fake GPUs with these names and driver to a root file system; mode ``missing``: without nvidia-smi."""
    state = root / STATE.lstrip("/")
    shutil.rmtree(state, ignore_errors=True)
    (state / "cards").mkdir(parents=True)
    for index, name in enumerate(cards):
        (state / "cards" / str(index)).write_text(f"{name}\n")
    (state / "mode").write_text(mode)
    (state / "driver").write_text(driver)
    smi = root / ON_NODE.lstrip("/")
    smi.unlink(missing_ok=True)
    if mode != "missing":
        shutil.copy(SMI, smi)


def device_nodes(count: int) -> list[str]:
    """Return the paths of the node's GPUs."""
    return [f"/dev/nvidia{index}" for index in range(count)]


def cdi_spec(count: int) -> str:
    """Return a CDI spec of fake GPUs: each device adds its name to the container, all of them add nvidia-smi."""
    cards = [_mount(f"{STATE}/cards/{index}") for index in range(count)]
    devices = [{"name": str(index), "containerEdits": {"mounts": [card]}} for index, card in enumerate(cards)]
    everything = {"name": "all", "containerEdits": {"mounts": cards}}
    shared = {"mounts": [_mount(ON_NODE)]}
    spec = {"cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": [*devices, everything]}
    return json.dumps({**spec, "containerEdits": shared}, indent=2)


def _mount(path: str) -> dict[str, object]:
    return {"hostPath": path, "containerPath": path, "options": ["ro", "bind"]}
