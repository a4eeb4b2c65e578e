"""Record the actual and the predicted cost of leases in the file leases.jsonl of the folder of results.

The setup of a lease is all of its time in which no suite runs: the boot, the configuration and the release.
"""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

from pydantic import Field, ValidationError

from experiments.results.schema import Record
from experiments.results.wording import format_duration, format_number
from provision.availability.times import length_in_words
from provision.files import read_text
from provision.words import number_with_noun

FILE = "leases.jsonl"
HOUR_S = 3600.0

PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A time above 0, because other times are divided by it."""


class LeaseRecord(Record):
    """A lease on which `testbed reproduce` ran suites: its times from its beginning to its deletion, and its price."""

    name: str = Field(description="name of the lease")
    node_type: str = Field(description="type of its nodes")
    su_per_hour: float | None = Field(description="price of all nodes, service units an hour; None: unknown")
    predicted_setup_s: float = Field(description="predicted time in which no suite runs, s")
    predicted_run_s: float = Field(description="predicted time of the suites, s")
    expected_run_s: PositiveSeconds = Field(
        description="predicted time of the suites without the correction by earlier leases, s"
    )
    used_s: PositiveSeconds = Field(description="time from the beginning of the lease to its deletion, s")
    before_request_s: float = Field(default=0.0, ge=0, description="part of used_s before the lease was requested, s")
    run_s: PositiveSeconds = Field(description="time of the suites, s")

    @property
    def setup_s(self) -> float:
        """Return the time after the request in which no suite ran, s."""
        return max(0.0, self.used_s - self.before_request_s - self.run_s)

    @property
    def predicted_s(self) -> float:
        """Return the predicted time from the beginning of the lease to its deletion, s.

        This includes the time before the request. Sites round the beginning down to a full minute, so that time is
        known at the request.
        """
        return self.before_request_s + self.predicted_setup_s + self.predicted_run_s

    @property
    def relative_error(self) -> float:
        """Return the relative error of the predicted time, which is also that of the cost; negative: too low."""
        return self.predicted_s / self.used_s - 1

    def service_units(self, seconds: float) -> float | None:
        """Return the cost of ``seconds`` of the lease in service units; None if the price is unknown."""
        return None if self.su_per_hour is None else self.su_per_hour * seconds / HOUR_S

    @property
    def in_words(self) -> str:
        """Return the actual and the predicted service units, and the times of setup and suites, as one line."""
        used, predicted = map(self.service_units, (self.used_s, self.predicted_s))
        cost = "price unknown" if used is None else f"{format_number(used)} service units"
        predicted_cost = "" if predicted is None else f", predicted {format_number(predicted)}"
        setup, suites = (
            f"{format_duration(real_s)}, predicted {format_duration(predicted_s)}"
            for real_s, predicted_s in ((self.setup_s, self.predicted_setup_s), (self.run_s, self.predicted_run_s))
        )
        return f"lease {self.name}: {cost}{predicted_cost} ({self.relative_error:+.0%}); setup {setup}; suites {suites}"


class EarlierLeases(NamedTuple):
    """Times of earlier leases of a node type.

    setup: time in which no suite runs. run_factor: measured time of the suites, divided by their expected time. source:
    how both are known.
    """

    setup: timedelta
    run_factor: float
    source: str

    @property
    def in_words(self) -> str:
        return f"setup {length_in_words(self.setup)} ({self.source})"


NO_LEASES = EarlierLeases(timedelta(hours=1), 1.0, "assumed")
"""Values that are assumed if there is no earlier lease. The boot takes about 10 minutes, and 30 on some nodes
(Chameleon's documentation). Then the driver, Docker and the image are installed."""


def read_records(results: Path) -> list[LeaseRecord]:
    """Return the records in a folder of results; leave out lines that cannot be read."""
    try:
        lines = read_text(results / FILE).splitlines()
    except OSError:
        return []
    return [record for line in lines if (record := _parse_record(line))]


def append_record(results: Path, record: LeaseRecord) -> None:
    """Add a record to a folder of results."""
    results.mkdir(parents=True, exist_ok=True)
    with (results / FILE).open("a") as file:
        file.write(record.model_dump_json() + "\n")


def earlier_leases(records: Iterable[LeaseRecord], node_type: str) -> EarlierLeases:
    """Return the median setup and factor of the earlier leases of that node type; NO_LEASES if there are none."""
    similar = [record for record in records if record.node_type == node_type]
    if not similar:
        return NO_LEASES
    setup = timedelta(seconds=round(median(record.setup_s for record in similar)))
    factor = median(record.run_s / record.expected_run_s for record in similar)
    return EarlierLeases(setup, factor, f"measured on {number_with_noun(len(similar), 'lease')}")


def _parse_record(line: str) -> LeaseRecord | None:
    try:
        return LeaseRecord.model_validate_json(line)
    except ValidationError:
        return None
