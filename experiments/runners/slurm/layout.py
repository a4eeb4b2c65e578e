"""Paths of the testbed's files on a cluster.

FOLDER/RUN_ID/                a run, laid out as on this machine: run.json, SUITE/ROW/
FOLDER/RUN_ID/.jobs/ROW-ATTEMPT/
                              the job of a row: its script, its output (out.txt), and the files that it writes: started,
                              and at its end the file ended, which has its exit code;
                              this machine writes the file fetched when it has the row's results
FOLDER/code/SHA256/           the project's code, unless it is part of an image
FOLDER/cache/                 downloads that all runs share; huggingface/ is the cache of the Hugging Face hub
FOLDER/cache/fetched/KEY/     the job that downloads one artifact: its script, its output, and paths.txt, the list of
                              downloaded files
"""

from dataclasses import dataclass

JOBS = ".jobs"
STARTED, ENDED, FETCHED, OUT, SPEC, SCRIPT = "started", "ended", "fetched", "out.txt", "spec.json", "job.sh"
PATHS_FILE = "paths.txt"


@dataclass(frozen=True)
class Layout:
    """Paths below ``folder``, an absolute path on the cluster."""

    folder: str

    @property
    def cache(self) -> str:
        """Return the folder of downloaded data and models."""
        return f"{self.folder}/cache"

    def run(self, run_id: str) -> str:
        """Return the folder of a run."""
        return f"{self.folder}/{run_id}"

    def code(self, sha256: str) -> str:
        """Return the folder of the code whose archive has this checksum."""
        return f"{self.folder}/code/{sha256[:16]}"

    def staging(self, key: str) -> str:
        """Return the folder of the job that downloads the artifact with this key."""
        return f"{self.cache}/fetched/{key}"
