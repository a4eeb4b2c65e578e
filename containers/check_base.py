"""Check that a base image fits a list of versions.

python check_base.py LIST

The image needs a supported Python and the list's version of PyTorch. Exits with one line that names the difference.
"""

import sys
from importlib import metadata
from pathlib import Path

PYTHONS = ("3.11", "3.12")

pins = dict(line.split("==") for line in Path(sys.argv[1]).read_text().split() if "==" in line)
if "{}.{}".format(*sys.version_info) not in PYTHONS:
    sys.exit(f"BASE_IMAGE has Python {sys.version.split()[0]}; the pins are for {' and '.join(PYTHONS)}")
try:
    torch = metadata.version("torch").partition("+")[0]
except metadata.PackageNotFoundError:
    torch = "none"
if torch != pins["torch"]:
    sys.exit(f"BASE_IMAGE has PyTorch {torch}; {Path(sys.argv[1]).name} is for {pins['torch']}")
