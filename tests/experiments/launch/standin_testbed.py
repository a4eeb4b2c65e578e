"""`testbed` with the stand-in worker in the place of the trainer, predictions made up: python -m ... ARGUMENTS."""

import sys
from functools import partial

from experiments import cli, pipeline, sizing
from tests.experiments.launch import standin_worker
from tests.experiments.prediction.factory import Predictor, stated

if __name__ == "__main__":
    sizing.predict = Predictor(stated)
    pipeline.run_suites = partial(pipeline.run_suites, worker=standin_worker.MODULE)
    sys.exit(cli.main(sys.argv[1:]))
