"""Is this image a base for a list of pins: Python 3.11, and the PyTorch of the list? Says in a line why not.

python check_base.py PINS
"""

import sys
from importlib import metadata
from pathlib import Path

PYTHON = (3, 11)

pins = dict(line.split("==") for line in Path(sys.argv[1]).read_text().split() if "==" in line)
if sys.version_info[:2] != PYTHON:
    sys.exit(f"BASE_IMAGE has Python {sys.version.split()[0]}; the pins are for {'.'.join(map(str, PYTHON))}")
try:
    torch = metadata.version("torch").partition("+")[0]
except metadata.PackageNotFoundError:
    torch = "none"
if torch != pins["torch"]:
    sys.exit(f"BASE_IMAGE has PyTorch {torch}; {Path(sys.argv[1]).name} is for {pins['torch']}")
