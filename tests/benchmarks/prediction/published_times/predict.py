"""Predict the published times from the recorded operations, with the project's step-time code and with rooflines."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import NamedTuple

from experiments.prediction.times.operations import parse
from experiments.prediction.times.step import phase_time, total_seconds
from experiments.prediction.times.table import TABLES, OperationTime, Table
from experiments.suites.cards import Card
from tests.benchmarks.prediction.published_times.labels import (
    PASSES,
    Label,
    PublishedTimes,
    TrainingOperations,
)
from tests.benchmarks.prediction.tables import relative_error

MEASURED_CARD = "h100_80gb"
