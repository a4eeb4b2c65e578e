"""The real worker, whose ranks are stand-ins (standin_rank.py) on every node: python -m ... --spec SPEC --out OUT."""

import sys

from experiments.training import ranks, worker

MODULE = "tests.experiments.training.standin_worker"

if __name__ == "__main__":
    ranks.TRAINER = "tests.experiments.training.standin_rank"
    sys.exit(worker.main())
