"""Compiled extensions: one folder for each environment and processor, and locks of killed builds."""

import pytest

from experiments.runners.local import row_process
from experiments.runners.local.torch_extensions import drop_stale_locks, extensions_folder


def test_environments_and_processors_do_not_share_builds(monkeypatch, tmp_path):
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path))
    here = extensions_folder("one processor")
    assert here.is_relative_to(tmp_path)
    assert here == extensions_folder("one processor") != extensions_folder("another")
    monkeypatch.setattr("sys.prefix", "/elsewhere")
    assert here != extensions_folder("one processor")


@pytest.mark.parametrize("alive", [True, False])
def test_a_lock_stays_only_while_a_row_lives(monkeypatch, tmp_path, alive):
    (tmp_path / "cpu_adam").mkdir()
    lock = tmp_path / "cpu_adam" / "lock"
    lock.touch()
    monkeypatch.setattr(row_process, "rows_alive", lambda: alive)
    drop_stale_locks(tmp_path)
    assert lock.exists() == alive
