"""Check that this base image has a supported version of Python, and the version of PyTorch in a list of versions.

python check_base.py LIST

The program runs in the base image. If a version differs, the program exits with a message of one line.
"""

import sys
from importlib import metadata
from pathlib import Path

PYTHONS = ("3.11", "3.12")

pins = dict(line.split("==") for line in Path(sys.argv[1]).read_text().split() if "==" in line)
if "{}.{}".format(*sys.version_info) not in PYTHONS:
    allowed = ", ".join(PYTHONS)
    sys.exit(f"BASE_IMAGE has Python {sys.version.split()[0]}; allowed: {allowed}; choose another base image")
try:
    torch = metadata.version("torch").partition("+")[0]
except metadata.PackageNotFoundError:
    torch = ""
if torch != pins["torch"]:
    wanted = f"{Path(sys.argv[1]).name} needs {pins['torch']}"
    found = f"PyTorch {torch}" if torch else "no PyTorch"
    sys.exit(f"BASE_IMAGE has {found}; {wanted}; choose another base image")
