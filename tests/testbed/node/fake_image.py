"""A fake of the experiments' image and of its base: `python`, `pip` and `apt-get` do nothing.

All other programs are those of the node's system.
"""

import io
import tarfile
from pathlib import Path

from tests.testbed.node.base_image import as_image

PROGRAMS = ("dash", "cat", "grep", "ls", "mkdir", "rm", "sed", "tr", "wc")
LIBRARIES = ("libc.so.6", "libacl.so.1", "libpcre2-8.so.0", "libselinux.so.1")
FILES = (
    *(f"usr/bin/{name}" for name in PROGRAMS),
    *(f"usr/lib/x86_64-linux-gnu/{name}" for name in LIBRARIES),
    "usr/lib64/ld-linux-x86-64.so.2",
)
LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "usr/bin/sh": "dash"}
STUBS = ("usr/bin/python", "usr/bin/pip", "usr/bin/apt-get")
STUB = b"#!/bin/sh\n"


def fake_image(system: Path, name: str, archive: Path) -> Path:
    """Write a fake image to ``archive`` in the format of `docker save`, from the root file system ``system``."""
    layer = archive.with_suffix(".layer")
    with tarfile.open(layer, "w", dereference=True) as tar:
        for file in FILES:
            tar.add(system / file, file)
        for link, target in LINKS.items():
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
        for folder in ("home", "tmp"):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(member)
        for stub in STUBS:
            member = tarfile.TarInfo(stub)
            member.size, member.mode = len(STUB), 0o755
            tar.addfile(member, io.BytesIO(STUB))
    as_image(layer, archive, name)
    layer.unlink()
    return archive
