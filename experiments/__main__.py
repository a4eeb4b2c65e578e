"""python -m experiments: the command line without an installed `testbed`."""

import sys

from experiments.cli.app import main

sys.exit(main())
