"""Compare the download of results with rsync: 500 MB in 2,000 files over a real sshd on this machine.

    python -m tests.benchmarks.tool_speed.result_downloads [--out FILE]

Three alternating rounds; the best time of each is compared. rsync uses OpenSSH with its default ciphers.
"""

import argparse
import json
import os
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

from experiments.results.provenance import git_commit
from experiments.runners.slurm.download import download_folder
from experiments.system.files import write_atomically
from provision.ssh.ssh_shell import SshShell
from tests.support.services.sshd import Sshd

FILES, BYTES = 2000, 500_000_000
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_files(folder / "remote")
        server = Sshd(folder / "ssh").start()
        login = server.login()
        try:
            downloads, others = [], []
            for number in range(ROUNDS):
                others.append(seconds_taken(lambda n=number: rsync(login, folder / "remote", folder / f"rsync-{n}")))
                downloads.append(
                    seconds_taken(lambda n=number: download(login, folder / "remote", folder / f"pull-{n}"))
                )
        finally:
            server.stop()
    found = {
        "command": "python -m tests.benchmarks.tool_speed.result_downloads",
        "on": f"{os.cpu_count()} cores, both ends on this machine",
        "git_commit": git_commit(),
        "load_average": os.getloadavg()[0],
        "files": FILES,
        "bytes": BYTES,
        "rsync_s": others,
        "pull_s": downloads,
        "pull_over_rsync": min(downloads) / min(others),
    }
    print(json.dumps(found, indent=1))
    if options.out:
        write_atomically(options.out, json.dumps(found, indent=1) + "\n")


def write_files(folder: Path) -> None:
    """Write files of many sizes, a few of them large."""
    folder.mkdir()
    weights = [1 + 99 * (number % 100 == 0) for number in range(FILES)]
    for number, weight in enumerate(weights):
        (folder / f"file-{number}").write_bytes(os.urandom(BYTES * weight // sum(weights)))


def rsync(login, source: Path, target: Path) -> None:
    *ssh, where = login.arguments()
    subprocess.run(["rsync", "-a", "-e", shlex.join(ssh), f"{where}:{source}/", target], check=True)


def download(login, source: Path, target: Path) -> None:
    shell = SshShell(login)
    assert download_folder(shell, str(source), target) == FILES
    shell.close()


def seconds_taken(act) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
