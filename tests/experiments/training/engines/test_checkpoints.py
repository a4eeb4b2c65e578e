"""A killed row resumes from its last checkpoint (transformers' Trainer, tiny models)."""

import signal
import subprocess
import sys

import pytest

from experiments.results.schema import CHECKPOINTS_FOLDER
from experiments.training import rank
from experiments.training.engines import checkpoints, hf_trainer
from tests.support.results.in_memory import CPU
from tests.support.training.tiny_rows import LORA, NF4, TEXT, spec

STEPS = 7
KILLED = "tests.experiments.training.engines.killed_rank"


def row(**changes):
    return spec(**TEXT | {"train_samples": 6, "max_epochs": 4, "max_steps": STEPS, "batch_size": 2} | changes)


@pytest.fixture(scope="module")
def killed_row(tmp_path_factory):
    """Folder of a row that was killed after 6 of its 7 steps, with a checkpoint every two steps."""
    out = tmp_path_factory.mktemp("row")
    (out / "spec.json").write_text(row().model_dump_json())
    killed = subprocess.run([sys.executable, "-m", KILLED, str(out / "spec.json"), str(out), "2", "6"])
    assert killed.returncode == -signal.SIGKILL
    return out


def train(out, **changes):
    return rank.run_rank(row(**changes), out)


def test_a_killed_row_resumes_and_ends_with_the_same_losses(killed_row, tmp_path):
    folder = killed_row / CHECKPOINTS_FOLDER
    assert [path.name for path in folder.iterdir()] == ["checkpoint-4"]
    assert checkpoints.last_checkpoint(row(seed=1), folder) is None
    (folder / "checkpoint-6").mkdir()
    measured, uninterrupted = train(killed_row), train(tmp_path)
    assert (measured.resumed_at_step, measured.speed.optimizer_steps) == (4, STEPS - 4)
    assert (uninterrupted.resumed_at_step, uninterrupted.speed.optimizer_steps) == (None, STEPS)
    assert measured.losses == pytest.approx(uninterrupted.losses[4:], rel=1e-5)
    assert measured.speed.planned_micro_steps == STEPS


@pytest.mark.parametrize("changes", [{"lora": LORA}, {"lora": LORA, "quantization": NF4, "precision": "bf16-true"}])
def test_adapters_are_saved_and_loaded(monkeypatch, tmp_path, changes):
    monkeypatch.setattr(checkpoints, "SAVE_EVERY_STEPS", 3)
    uninterrupted = train(tmp_path, **changes)
    measured = train(tmp_path, **changes)
    assert measured.resumed_at_step == 6
    assert measured.losses == pytest.approx(uninterrupted.losses[6:], rel=1e-3)


@pytest.mark.parametrize("length", ["verdict", "peak"])
def test_only_a_full_length_training_saves_checkpoints(tmp_path, length):
    assert hf_trainer.build_arguments(row(length=length), CPU, tmp_path).save_strategy == "no"
    arguments = hf_trainer.build_arguments(row(), CPU, tmp_path)
    assert (arguments.save_strategy, arguments.save_steps, arguments.save_total_limit) == ("steps", 100, 1)


def test_a_rank_that_has_ended_leaves_the_checkpoints_to_the_other_ranks(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "SAVE_EVERY_STEPS", 2)
    saved = []

    def note(callback, args, state, *rest, **more):
        saved.append(state.global_step)

    monkeypatch.setattr(checkpoints.FingerprintCallback, "on_save", note)
    train(tmp_path)
    assert saved == [2, 4, 6]
    assert (tmp_path / CHECKPOINTS_FOLDER).is_dir()


def test_several_ranks_share_their_checkpoints(tmp_path):
    alone, together = row(), row(devices=2, strategy="ddp", train_samples=None)
    assert checkpoints.checkpoints_folder(alone, tmp_path) == tmp_path / CHECKPOINTS_FOLDER
    assert checkpoints.checkpoints_folder(together, tmp_path / "rank-1") == tmp_path / CHECKPOINTS_FOLDER
