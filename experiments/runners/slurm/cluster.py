"""Prepare a cluster for rows: create its folder, upload the project's code, and check that its Python can run rows."""

import hashlib
import shlex
from contextlib import suppress
from functools import cached_property

from experiments.errors import InputError
from experiments.results.provenance import code_sha256
from experiments.results.run_folder import RUN_FILE, RunFolder
from experiments.runners.slurm.job_script import JobScripts
from experiments.runners.slurm.layout import Layout
from experiments.runners.slurm.profile import Profile
from experiments.runners.slurm.runtimes import RUNTIMES, Runtime
from experiments.runners.software import PRINT_VERSIONS, Software, parse_software
from experiments.system.files import CODE_FOLDER
from provision import reproducible
from provision.errors import CommandFailed
from provision.ssh.shell import Shell

PACKAGES = ("experiments", "provision")
SUFFIXES = (".py", ".yaml", ".ipynb", ".html", ".css", ".js", ".h", ".cpp")
EXCLUDED = ("evidence", "__pycache__")
TOOLS = ("sbatch", "squeue", "scancel", "tar", "sha256sum")
CHECK_TIMEOUT_S = 300.0
PRINT_CODE_SHA256 = "import papermill; from experiments.results.provenance import code_sha256; print(code_sha256())"


class Cluster:
    """A cluster as ``profile`` describes it; its commands run in ``shell``."""

    def __init__(self, shell: Shell, profile: Profile) -> None:
        self.shell = shell
        self.profile = profile
        self._code = ""

    def connect(self) -> None:
        """Connect to the cluster. Raises NotReached if it does not answer, and CommandFailed if it lacks a tool."""
        self.shell.run(f"command -v {shlex.join(TOOLS)}", repeatable=True)

    def prepare(self, run: RunFolder) -> None:
        """Create the run's folder, upload the code, and check that Python on the cluster starts with exactly this code.

        Raises InputError if the check fails.
        """
        run_id = run.read_run().run_id
        self.connect()
        if self.runtime.uploads_code:
            self._code = self._upload_code()
        self.shell.put((run.path / RUN_FILE).read_bytes(), f"{self.layout.run_folder(run_id)}/{RUN_FILE}")
        self._check()

    def software(self) -> Software | None:
        """Return the versions in the profile's environment; None if its Python does not start."""
        with suppress(CommandFailed):
            return parse_software(self.python_output(PRINT_VERSIONS))
        return None

    def python_output(self, code: str) -> str:
        """Run ``code`` with the profile's Python; return the output. Raises CommandFailed with the last output line."""
        runtime = self.runtime
        lines = [*runtime.setup(), *runtime.script_lines(f"python -c {shlex.quote(code)}")]
        script = "\n".join(["SLURM_JOB_ID=check-$$", *lines])
        command = f"{runtime.shell} -c {shlex.quote(script)}"
        return self.shell.run(command, timeout_s=CHECK_TIMEOUT_S, repeatable=True).out

    @cached_property
    def folder(self) -> str:
        """Return the absolute path of the profile's folder; create it if it is missing."""
        folder = shlex.quote(self.profile.folder)
        return self.shell.run(f"mkdir -p {folder} && cd {folder} && pwd -P", repeatable=True).out.strip()

    @property
    def layout(self) -> Layout:
        """Return the paths below the cluster's folder."""
        return Layout(self.folder)

    @property
    def cache(self) -> str:
        """Return the folder of downloads on the cluster."""
        return self.layout.cache

    @property
    def runtime(self) -> Runtime:
        """Return the runtime of the profile. After a call of ``prepare``, the runtime uses the uploaded code."""
        return RUNTIMES[self.profile.runtime](self.profile, self.layout, self._code)

    @property
    def scripts(self) -> JobScripts:
        """Return the object that writes batch scripts. Call ``prepare`` before it writes scripts of rows."""
        return JobScripts(self.profile, self.layout, self.runtime)

    def _upload_code(self) -> str:
        """Upload the project's code unless the cluster has it; return its folder."""
        packed = code_archive()
        folder = self.layout.code_folder(hashlib.sha256(packed).hexdigest())
        quoted, archive = shlex.quote(folder), f"{folder}.tar.gz"
        if self.shell.run(f"test -d {quoted}", check=False, repeatable=True).code:
            self.shell.put(packed, archive)
            fresh = f'fresh=$(mktemp -d {quoted}.XXXX) && tar -xzf {shlex.quote(archive)} -C "$fresh"'
            self.shell.run(f'{fresh} && chmod 755 "$fresh" && mv -T "$fresh" {quoted} || test -d {quoted}')
        return folder

    def _check(self) -> None:
        """Raise InputError if Python does not start, lacks papermill, or has other code than this checkout."""
        profile = self.profile
        where = f"profile {profile.name}: {profile.runtime} {profile.environment or ''}".strip()
        try:
            output = self.python_output(PRINT_CODE_SHA256)
        except CommandFailed as problem:
            raise InputError(f"{where}: its Python cannot run rows: {problem}") from None
        if code_sha256() not in output:
            raise InputError(f"{where}: has different training code; rebuild it from this checkout")


def code_archive() -> bytes:
    """Return the project's code as a tar.gz archive, reproducible byte for byte."""
    paths = (path for package in PACKAGES for path in reproducible.files_in(CODE_FOLDER / package, EXCLUDED))
    files = {path.relative_to(CODE_FOLDER).as_posix(): path for path in paths if path.suffix in SUFFIXES}
    return reproducible.archive_in_memory(files)
