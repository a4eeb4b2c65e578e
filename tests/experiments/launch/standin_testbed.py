"""`testbed` with the stand-in worker in the place of the trainer: python -m ... ARGUMENTS."""

import sys
from functools import partial

from experiments import cli, pipeline
from tests.experiments.launch import standin_worker

if __name__ == "__main__":
    pipeline.run_suite = partial(pipeline.run_suite, worker=standin_worker.MODULE)
    sys.exit(cli.main(sys.argv[1:]))
