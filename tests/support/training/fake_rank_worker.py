"""The real worker with fake ranks (fake_rank.py) on every node: python -m ... --spec SPEC --out OUT."""

import sys

from experiments.training import worker
from experiments.training.distributed import ranks

MODULE = "tests.support.training.fake_rank_worker"

if __name__ == "__main__":
    ranks.RANK_MODULE = "tests.support.training.fake_rank"
    sys.exit(worker.main())
