"""A fake environment with other versions: its Python reads predictions from a stored run, and trains nothing.

Files in the folder of the semester check select its behavior: OOM.txt names a row that runs out of memory, BROKEN.txt a
part of the check that ends with an error, UNTRACEABLE.txt a part that predicts nothing. Each call of the environment's
Python appends the name of its part to CALLS.txt. The recorded start times of the runs are at least a second apart.
"""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from experiments.report.write import write_report
from experiments.results.predictions import Prediction
from experiments.results.run_folder import RunFolder
from experiments.system.files import CODE_FOLDER
from tests.support.results.evidence import EVIDENCE
from tests.support.runners.fake_predictions import failure_on_card

SUITE = "single_gpu_blip2"
STORED = RunFolder(EVIDENCE / f"{SUITE}-a100_80gb-without-gpu")


def write_python(folder: Path, torch: str) -> Path:
    """Write a fake Python of an environment with that version of PyTorch; return its path.

    With the option -c, the fake Python prints the version; otherwise it calls ``main``.
    """
    made = folder / f"python-{torch}"
    made.write_text(
        f"#!/bin/sh\n[ \"$1\" = -c ] && echo '{json.dumps({'torch': torch})}' && exit\n"
        f'PYTHONPATH={CODE_FOLDER} exec {sys.executable} -m {__name__} "$@"\n'
    )
    made.chmod(0o755)
    return made


def main(words: list[str]) -> int:
    """Write a copy of the stored run, as `testbed run` with these arguments would; return the exit code."""
    results = Path(words[words.index("--results") + 1])
    settings = results.parents[1]
    with (settings / "CALLS.txt").open("a+") as calls:
        print(results.name, file=calls, flush=True)
        calls.seek(0)
        number = len(calls.readlines())
    if results.name == _setting(settings / "BROKEN.txt"):
        print("testbed: the driver is missing")
        return 3
    card = words[words.index("--card") + 1] if "--card" in words else STORED.read_run().card
    started_at = (datetime.now(UTC) + timedelta(seconds=number)).isoformat(timespec="seconds")
    run = STORED.read_run().model_copy(
        update={"card": card, "size": "tiny", "run_id": f"run-{number}", "started_at": started_at}
    )
    folder = RunFolder(results / f"{SUITE}-{card}")
    folder.write_run(run)
    oom = _setting(settings / "OOM.txt")
    if results.name == _setting(settings / "UNTRACEABLE.txt"):
        print("not predicted: baseline: cannot be traced (ValueError: one tensor)")
        write_report(folder)
        return 0
    folder.write_predictions([_out_of_memory(one) if one.spec.row == oom else one for one in STORED.predictions()])
    write_report(folder)
    return 0


def _out_of_memory(one: Prediction) -> Prediction:
    needed_gib = 2 * one.usable_gib
    return one.model_copy(update={"needed_gib": needed_gib, "failure": failure_on_card(needed_gib, one.usable_gib)})


def _setting(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
