"""Write a ZIP archive of a run's report and of the files that the report links to."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from experiments.report.content import ROW_FILES
from experiments.results.run_folder import (
    CHECKSUMS_FILE,
    JUNIT_FILE,
    PAGE_FILE,
    REPORT_FILE,
    RUN_FILE,
    VERDICT_FILE,
    RunFolder,
    row_path,
)
from provision.files import read_bytes

ENTRY_DATE = (1980, 1, 1, 0, 0, 0)
"""Date of every file in an archive: the earliest date that the ZIP format allows."""


def write_archive(folder: RunFolder) -> Path:
    """Write <run's folder>.zip next to the run's folder; return the path of the archive. Write the report first.

    The archive has the report's files, and the files of rows that the report links to. The order and the dates of its
    entries are fixed, so that the same files give the same archive. Weights, checkpoints and other files of rows are
    left out.
    """
    run = folder.read_run()
    names = [PAGE_FILE, REPORT_FILE, VERDICT_FILE, JUNIT_FILE, RUN_FILE]
    names += [f"{row_path(run.suite, row)}/{name}" for row in run.rows for name in sorted(ROW_FILES.values())]
    paths = {name: folder.path / name for name in names}
    contents = {name: read_bytes(path) for name, path in paths.items() if path.is_file() and not path.is_symlink()}
    run_path = folder.path.resolve()
    return write_zip(run_path.with_name(f"{run_path.name}.zip"), contents, f"{run_path.name}/")


def write_zip(target: Path, contents: Mapping[str, bytes], folder: str = "") -> Path:
    """Write ``contents`` (file names and bytes) and a SHA256SUMS of them to the archive ``target``; return ``target``.

    folder: the folder inside the archive, a name with a slash at its end, or empty. The same files give the same
    archive.
    """
    checksums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())
    partial = target.with_name(f"{target.name}.part")
    partial.unlink(missing_ok=True)  # never write through an existing link or FIFO
    with zipfile.ZipFile(partial, "x") as archive:
        for name, content in {**contents, CHECKSUMS_FILE: checksums.encode()}.items():
            entry = zipfile.ZipInfo(f"{folder}{name}", ENTRY_DATE)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    partial.replace(target)
    return target
