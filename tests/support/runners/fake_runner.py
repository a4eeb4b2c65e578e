"""A fake runner that writes a result for every row at once."""

from typing import ClassVar

from experiments.results.schema import RESULT_FILE
from experiments.runners.remaining import ExpectedTime
from tests.support.runners import fake_worker

SUITE = "single_gpu_blip2"
SLURM = "slurm_hf_trainer"


class FakeRunner:
    """Writes a result for every row at once, and records the requested rows, and how many share a GPU."""

    ran: ClassVar[list[str]] = []
    rows_per_gpu = 1
    expected: ClassVar[dict[str, ExpectedTime] | None] = None

    def __init__(self, folder, *_, rows_per_gpu=1, expected=None):
        self.folder = folder
        FakeRunner.rows_per_gpu, FakeRunner.expected = rows_per_gpu, expected

    def run(self, rows):
        for row in rows:
            path = self.folder.row_folder(row.spec)
            path.mkdir(parents=True, exist_ok=True)
            (path / RESULT_FILE).write_text(fake_worker.fake_result(row.spec, "fits").model_dump_json())
            FakeRunner.ran.append(row.row)
