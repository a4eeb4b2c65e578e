"""Bringing results home beside rsync: 500 MB in 2,000 files over a real sshd on this machine; both times, the ratio.

python -m tests.benchmarks.pulling
"""

import os
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

from experiments.launch.pull import pull
from provision.shell import Over
from tests.provision.sshd import Sshd

FILES, BYTES = 2000, 500_000_000
ROUNDS = 3


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        make(here / "there")
        server = Sshd(here / "ssh").start()
        login = server.login()
        try:
            ours, others = [], []
            for number in range(ROUNDS):
                others.append(timed(lambda n=number: rsync(login, here / "there", here / f"rsync-{n}")))
                ours.append(timed(lambda n=number: bring(login, here / "there", here / f"pull-{n}")))
        finally:
            server.stop()
        print(f"rsync {min(others):.2f} s, pull {min(ours):.2f} s, ratio {min(ours) / min(others):.2f}")


def make(folder: Path) -> None:
    """Files of many sizes, a few of them large."""
    folder.mkdir()
    weights = [1 + 99 * (number % 100 == 0) for number in range(FILES)]
    for number, weight in enumerate(weights):
        (folder / f"file-{number}").write_bytes(os.urandom(BYTES * weight // sum(weights)))


def rsync(login, source: Path, target: Path) -> None:
    *ssh, where = login.arguments()
    subprocess.run(["rsync", "-a", "-e", shlex.join(ssh), f"{where}:{source}/", target], check=True)


def bring(login, source: Path, target: Path) -> None:
    shell = Over(login)
    assert pull(shell, str(source), target) == FILES
    shell.close()


def timed(act) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
