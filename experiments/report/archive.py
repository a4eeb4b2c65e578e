"""An archive of a run's report, with all files that it links to."""

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

FIRST_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest date that a ZIP file can contain."""


def write_archive(folder: RunFolder) -> Path:
    """Write <run's folder>.zip next to the run's folder and return its path; the report must have been written.

    The archive has the report's files, and the files of rows that the report links to. Their order and date are fixed,
    so that the same files give the same archive. Weights, checkpoints and other files of rows are left out.
    """
    run = folder.read_run()
    names = [PAGE_FILE, REPORT_FILE, VERDICT_FILE, JUNIT_FILE, RUN_FILE]
    names += [f"{row_path(run.suite, row)}/{name}" for row in run.rows for name in sorted(ROW_FILES.values())]
    paths = {name: folder.path / name for name in names}
    contents = {name: read_bytes(path) for name, path in paths.items() if path.is_file() and not path.is_symlink()}
    place = folder.path.resolve()
    return write_zip(place.with_name(f"{place.name}.zip"), contents, f"{place.name}/")


def write_zip(target: Path, contents: Mapping[str, bytes], folder: str = "") -> Path:
    """Write ``contents`` (file names and bytes) and their SHA256SUMS to the archive ``target``; return its path.

    folder: the folder inside the archive, a name with a slash at its end, or empty. The same files give the same
    archive.
    """
    checksums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())
    partial = target.with_name(f"{target.name}.part")
    partial.unlink(missing_ok=True)  # never write through an existing link or FIFO
    with zipfile.ZipFile(partial, "x") as archive:
        for name, content in {**contents, CHECKSUMS_FILE: checksums.encode()}.items():
            entry = zipfile.ZipInfo(f"{folder}{name}", FIRST_DATE)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    partial.replace(target)
    return target
