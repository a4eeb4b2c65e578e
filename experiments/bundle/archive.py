"""Write and read the archive of a run that a student hands in. Archives are untrusted input."""

import hashlib
import json
import re
import stat
import zipfile
from pathlib import Path, PurePosixPath

from experiments.errors import InputError
from experiments.report.archive import write_zip
from experiments.results.run_folder import (
    CHECKSUMS_FILE,
    PREDICTIONS_FILE,
    RUN_FILE,
    SUITE_FILE,
    VERDICT_FILE,
    RunFolder,
)
from experiments.results.schema import RESULTS_FILE, TELEMETRY_FOLDER
from experiments.system.secrets import NOTIFY_OPTION, hide_secrets
from provision.files import open_file, read_bytes

BUNDLE_FILES = (RUN_FILE, SUITE_FILE, PREDICTIONS_FILE, VERDICT_FILE, RESULTS_FILE)
TELEMETRY_NAME = re.compile(rf"{TELEMETRY_FOLDER}/[\w.-]+\.csv")
MAX_BYTES = 64 << 20
"""Maximum size of all files of a bundle together. The largest run in experiments/evidence has less than 2 MiB."""
MAX_FILES = 1000
NOTIFY_ARGUMENT = re.compile(rf"{NOTIFY_OPTION}[= ]\S+")
"""The option for notifications with its address, which may contain a password."""
FIELDS_WITH_SECRETS = ("command", "reason", "message", "where", "log")


class BadBundle(InputError):
    """An archive that is not a bundle, or that is not safe to read."""


def write_bundle(folder: RunFolder, target: Path | None = None) -> Path:
    """Write the results of a run to one archive; return the path of the archive.

    target: path of the archive; default: <run's folder>.bundle.zip. The archive has run.json, each row's result and
    telemetry, predictions, verdicts, and the checksums of these files. It has no weights, logs or notebooks. Passwords
    in URLs, notification addresses and the path of the home folder are removed from the texts. Two archives of the same
    run have the same bytes. Raises InputError if ``folder`` is not a run's folder or has no result.
    """
    run, results = folder.read_run(), folder.results()
    if not results:
        raise InputError(f"{folder.path}: no row has a result; `testbed run {run.suite}` runs them")
    contents = {name: read_bytes(folder.path / name) for name in BUNDLE_FILES if (folder.path / name).is_file()}
    contents[RUN_FILE] = _remove_secrets(run.model_dump_json())
    lines = [_remove_secrets(result.model_dump_json()) for result in results.values()]
    contents[RESULTS_FILE] = b"".join(line + b"\n" for line in lines)
    for row in results:
        if path := folder.telemetry_file(row):
            contents[f"{TELEMETRY_FOLDER}/{row}.csv"] = read_bytes(path)
    place = folder.path.resolve()
    return write_zip(target or place.with_name(f"{place.name}.bundle.zip"), contents)


def _remove_secrets(text: str) -> bytes:
    return json.dumps(_value_without_secrets(json.loads(text)), ensure_ascii=False).encode()


def _value_without_secrets(value: object, key: str = "") -> object:
    if isinstance(value, dict):
        return {name: _value_without_secrets(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_value_without_secrets(one, key) for one in value]
    if isinstance(value, str) and key in FIELDS_WITH_SECRETS:
        return hide_secrets(NOTIFY_ARGUMENT.sub(f"{NOTIFY_OPTION} ***", value)).replace(str(Path.home()), "~")
    return value


def read_bundle(path: Path) -> dict[str, bytes]:
    """Return the content of each file of a bundle by name, without writing to the disk.

    Raises BadBundle for a file that is not an archive, and for an archive of more than MAX_FILES files or MAX_BYTES
    bytes. Also raises BadBundle if a file in the archive has an unknown or repeated name, is a link, is encrypted, or
    does not match its checksum.
    """
    try:
        with open_file(path) as opened, zipfile.ZipFile(opened) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise BadBundle(f"{path}: too large for a bundle; allowed: {MAX_FILES} files, {MAX_BYTES >> 20} MiB")
            contents: dict[str, bytes] = {}
            for entry in entries:
                _check_entry(path, entry, contents)
                with archive.open(entry) as file:
                    contents[entry.filename] = file.read(entry.file_size)
    except BadBundle:
        raise
    except OSError as error:
        raise BadBundle(f"{path}: cannot be read ({error.strerror or error})") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise BadBundle(f"{path}: not a bundle ({error})") from None
    _verify_checksums(path, contents)
    return contents


def _check_entry(path: Path, entry: zipfile.ZipInfo, seen: dict[str, bytes]) -> None:
    name = entry.filename
    mode = entry.external_attr >> 16
    if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
        raise BadBundle(f"{path}: {name!r} is not a regular file")
    if entry.flag_bits & 1:
        raise BadBundle(f"{path}: {name!r} is encrypted")
    known = name in (*BUNDLE_FILES, CHECKSUMS_FILE) or TELEMETRY_NAME.fullmatch(name)
    if not known or ".." in PurePosixPath(name).parts or name in seen:
        raise BadBundle(f"{path}: {name!r} does not belong in a bundle, or occurs twice")


def _verify_checksums(path: Path, contents: dict[str, bytes]) -> None:
    if missing := [name for name in (RUN_FILE, RESULTS_FILE, CHECKSUMS_FILE) if name not in contents]:
        raise BadBundle(f"{path}: not a bundle ({missing[0]} is missing)")
    lines = contents[CHECKSUMS_FILE].decode(errors="replace").splitlines()
    stated = {name: checksum for checksum, _, name in (line.partition("  ") for line in lines)}
    actual = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items() if name != CHECKSUMS_FILE}
    if changed := [name for name in {**stated, **actual} if stated.get(name) != actual.get(name)]:
        raise BadBundle(f"{path}: {', '.join(changed)} does not match {CHECKSUMS_FILE}")
