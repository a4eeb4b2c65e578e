"""Check that the base image in which this program runs fits a list of versions.

python check_base.py LIST

The base image must have a supported version of Python and the list's version of PyTorch. Otherwise the program exits
with one line that names the difference.
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
    torch = "none"
if torch != pins["torch"]:
    wanted = f"{Path(sys.argv[1]).name} needs {pins['torch']}"
    sys.exit(f"BASE_IMAGE has PyTorch {torch}; {wanted}; choose another base image")
