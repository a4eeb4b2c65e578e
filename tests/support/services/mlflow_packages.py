"""MLflow's client in a folder of the cache, installed once: the environment of the tests does not have it."""

import subprocess
import sys
from pathlib import Path

from experiments.system.files import CODE_FOLDER, cache_folder
from tests.testbed.openstack.environment import locked

PACKAGES = ("alembic==1.20.1", "mlflow-skinny==3.17.2", "sqlalchemy==2.1.9")


def mlflow_folder() -> Path:
    """Return the folder for PYTHONPATH; install the packages if it is missing (a minute of download)."""
    folder = cache_folder() / f"mlflow-{'-'.join(one.rpartition('=')[2] for one in PACKAGES)}"
    with locked(folder):
        if not (folder / ".made").exists():
            pins = CODE_FOLDER / "containers/current.txt"
            known = folder.with_suffix(".constraints")
            known.write_text("\n".join(line for line in pins.read_text().splitlines() if "==" in line))
            install = [
                sys.executable,
                "-m",
                "uv",
                "pip",
                "install",
                "--quiet",
                "--target",
                str(folder),
                "-c",
                str(known),
            ]
            subprocess.run([*install, *PACKAGES], check=True, stdout=sys.__stderr__)
            known.unlink()
            (folder / ".made").touch()
    return folder
