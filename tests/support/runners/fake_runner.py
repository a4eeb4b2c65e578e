"""A fake runner that writes a result for every row at once."""

from typing import ClassVar

from experiments.results.schema import RESULT_FILE
from tests.support.runners import fake_worker

SUITE = "single_gpu_blip2"
SLURM = "slurm_hf_trainer"


class FakeRunner:
    """Writes a result for every row at once, and records the requested rows."""

    ran: ClassVar[list[str]] = []

    def __init__(self, folder, *_):
        self.folder = folder

    def run(self, rows):
        for row in rows:
            path = self.folder.row(row.spec)
            path.mkdir(parents=True, exist_ok=True)
            (path / RESULT_FILE).write_text(fake_worker.made(row.spec, "fits").model_dump_json())
            FakeRunner.ran.append(row.row)
