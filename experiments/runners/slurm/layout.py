"""Define the paths of the testbed's files on a cluster.

FOLDER/RUN_ID/                a run, with the same files as on the user's computer: run.json, SUITE/ROW/
FOLDER/RUN_ID/.jobs/ROW-ATTEMPT/
                              the job of a row: job.sh is the script, spec.json the row's specification, and out.txt
                              the output. When the job starts, it writes the file "started". When it ends, it writes
                              its exit code into the file "ended". The user's computer writes the file "fetched" when
                              it has the row's results.
FOLDER/code/SHA256/           the project's code, unless it is part of an image
FOLDER/cache/                 downloads that all runs share; huggingface/ is the cache of the Hugging Face hub
FOLDER/cache/fetched/KEY/     the job that downloads one artifact: its script, its output, and paths.txt, the list of
                              downloaded files
"""

from dataclasses import dataclass

JOBS_FOLDER = ".jobs"
STARTED_FILE, ENDED_FILE, FETCHED_FILE = "started", "ended", "fetched"
SCRIPT_FILE, JOB_SPEC_FILE, OUTPUT_FILE = "job.sh", "spec.json", "out.txt"
PATHS_FILE = "paths.txt"


@dataclass(frozen=True)
class Layout:
    """Paths below ``folder``, an absolute path on the cluster."""

    folder: str

    @property
    def cache(self) -> str:
        """Return the folder of downloaded data and models."""
        return f"{self.folder}/cache"

    def run_folder(self, run_id: str) -> str:
        """Return the folder of a run."""
        return f"{self.folder}/{run_id}"

    def code_folder(self, sha256: str) -> str:
        """Return the folder of the code whose archive has this checksum."""
        return f"{self.folder}/code/{sha256[:16]}"

    def staging_folder(self, key: str) -> str:
        """Return the folder of the job that downloads the artifact with this key."""
        return f"{self.cache}/fetched/{key}"
