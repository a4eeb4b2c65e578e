import mmap
import os
import time

from experiments.training.distributed.shared_memory import remove_shared_memory


def test_only_shared_memory_that_no_process_maps_is_removed(tmp_path):
    for name in ("nccl-old", "nccl-left", "torch_17_left", "nccl-mapped", "psm_other"):
        (tmp_path / name).write_bytes(b"x" * 4096)
    os.utime(tmp_path / "nccl-old", (1, 1))
    with (tmp_path / "nccl-mapped").open("r+b") as file, mmap.mmap(file.fileno(), 0):
        remove_shared_memory(time.time() - 60, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"nccl-old", "nccl-mapped", "psm_other"}
    remove_shared_memory(time.time() - 60, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"nccl-old", "psm_other"}
