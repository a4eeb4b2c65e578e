"""`testbed` with the fake worker in place of the trainer, and fake predictions: python -m ... ARGUMENTS."""

import sys
from functools import partial

from experiments import pipeline
from experiments.cli import app
from experiments.prediction import service
from tests.support.runners import fake_worker
from tests.support.runners.fake_predictions import Predictor, stated

if __name__ == "__main__":
    service.predict = Predictor(stated)  # type: ignore[attr-defined, assignment]
    pipeline.run_suites = partial(pipeline.run_suites, worker=fake_worker.MODULE)
    sys.exit(app.main(sys.argv[1:]))
