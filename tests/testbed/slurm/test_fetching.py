"""Downloads of artifacts by jobs that the rows wait for. Slurm and huggingface_hub are real; the hub is a fake."""

import hashlib
import json
import os
import signal
import tarfile
from typing import Any

import pytest
import torch

from experiments.errors import Interrupted
from experiments.inputs import dataset
from experiments.runners.local.warm import WORKER_MODULE
from experiments.runners.slurm import job_script
from experiments.runners.slurm.cluster import Cluster as Rows
from experiments.runners.slurm.runner import SlurmRunner
from experiments.suites.models import models
from experiments.training.models.weights import build_random
from tests.support.processes.waiting import wait_for
from tests.support.runners import fake_worker
from tests.support.runners import rows as sample_rows
from tests.support.services.fake_hub import COMMIT, FakeHub
from tests.support.training import tiny_rows as training
from tests.testbed.slurm.conftest import profile_of
from tests.testbed.slurm.runs import GRACE_S, DropsAfterSubmit, SlurmBed, call_when

MODEL = "gpt-neo-1.3b"
REPO = models()[MODEL].hub
SLOW_S = 4.0
REFUSED = 403


class Bed(SlurmBed):
    """Rows with a separate cache on the cluster. The rows in ``pretrained`` read pretrained weights."""

    def __init__(self, path, cluster, web, shell=None, **profile) -> None:
        super().__init__(path, cluster, shell, **{"folder": f"testbed-{path.name}", **profile})
        self.web, self.data = web, None
        self.pretrained = self.setup = ""

    def runner(self, behavior, worker=fake_worker.MODULE) -> SlurmRunner:
        told = ",".join(f"{row}={how}" for row, how in behavior.items())
        own = {"FAKE": told, "FAKE_JOURNAL": str(self.journal), "HF_ENDPOINT": self.web.url}
        profile = profile_of(self.cluster, **own)
        profile = profile.model_copy(update={"setup": (*profile.setup, self.setup), **self._profile})
        options: dict[str, Any] = {**self.options, "data": self.data}
        return SlurmRunner(self.folder, Rows(self.shell, profile), self.view, worker, GRACE_S, **options)

    def specs(self, rows, **changes):
        for row in rows:
            weights = "pretrained" if row in self.pretrained else "random"
            own = {"weights": weights, "data": "synthetic", **changes}
            yield sample_rows.spec(row, size="tiny", dataset="alpaca2k", model=MODEL, engine="hf_trainer", **own)

    def run(self, rows, limit_s=60, pretrained="", **behavior) -> None:
        self.pretrained = pretrained
        self.runner(behavior).run(sample_rows.rows_to_run(*self.specs(rows)))

    def begun_at(self, row) -> float:
        return next(float(line.split()[1]) for line in self.journal.read_text().splitlines() if line[0] == row)

    def reason(self, row) -> str:
        return self.folder.results()[row].reason

    def waited(self, row) -> set[str]:
        return {state.status for states, *_ in self.view.shown for state in states if state.spec.row == row}

    @property
    def cache(self):
        return self.cluster.home / f"testbed-{self.path.name}" / "cache"

    def fetches(self) -> list[str]:
        lines = self.cluster.query("squeue", "--noheader", "--states=all", "--format=%j|%k").splitlines()
        return [line for line in lines if line.startswith("fetch/") and f"testbed-{self.path.name}/" in line]


@pytest.fixture
def web(tmp_path):
    (folder := tmp_path / "published").mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(1000))
    with FakeHub() as hub:
        hub.repos[f"models/{REPO}"] = folder
        yield hub


@pytest.fixture
def bed(cluster, tmp_path, web):
    made = Bed(tmp_path, cluster, web)
    yield made
    made.close()
    wait_for(lambda: not made.queue())


def test_rows_wait_for_one_download_of_their_artifacts_while_others_run(bed, web):
    web.slow_s = SLOW_S
    bed.run("abc", pretrained="ab")
    assert bed.outcomes() == dict.fromkeys("abc", "fits"), bed.view.lines
    assert web.downloads == {"config.json": 1, "model.safetensors": 1}
    assert min(bed.begun_at("a"), bed.begun_at("b")) - bed.begun_at("c") > SLOW_S
    assert any(text.startswith(f"queued (Dependency: the weights of {REPO}") for text in bed.waited("a"))
    assert sum("download job" in line for line in bed.view.lines) == 1
    assert f"the weights of {REPO}: downloaded" in bed.view.lines
    jobs = sorted(bed.cache.parent.glob("*/.jobs/*"))
    assert [(job.name[:2], (job / "fetched").exists()) for job in jobs] == [("a-", True), ("b-", True), ("c-", True)]


def test_a_later_run_does_not_download_complete_artifacts_again(bed, web):
    bed.run("a", pretrained="a")
    asked, jobs = web.requests, len(bed.fetches())
    bed.run("b", pretrained="b")
    assert bed.outcomes() == {"a": "fits", "b": "fits"}
    assert (web.requests, len(bed.fetches())) == (asked, jobs)
    (bed.cache / "huggingface/hub" / f"models--{REPO.replace('/', '--')}/refs/main").unlink()
    next(bed.cache.rglob("model.safetensors")).unlink()
    bed.run("c", pretrained="c")
    assert len(bed.fetches()) == jobs + 1


def test_a_failed_download_is_the_reason_of_only_the_rows_that_need_it(bed, web):
    web.error_status = REFUSED
    bed.run("abc", pretrained="ab")
    assert bed.outcomes() == {"a": "error", "b": "error", "c": "fits"}
    for row in "ab":
        assert bed.reason(row).startswith(
            f"the weights of {REPO} could not be downloaded: the weights of '{REPO}' cannot"
        )
        assert f"{REFUSED} Forbidden" in bed.reason(row)
        assert "\n" not in bed.reason(row)
    web.error_status = None
    bed.run("ab", pretrained="ab")
    assert bed.outcomes() == dict.fromkeys("abc", "fits")


def test_a_download_that_reaches_its_time_limit_is_the_reason(bed, monkeypatch):
    bed.setup = 'case "$SLURM_JOB_NAME" in fetch/*) sleep 600;; esac'
    monkeypatch.setattr(job_script, "STAGING_LIMIT_MIN", 1)
    bed.run("a", pretrained="a")
    assert bed.reason("a").endswith("could not be downloaded: did not end within 1 min")


def test_a_resumed_run_follows_its_running_download(bed, web):
    web.slow_s = SLOW_S
    interrupting = call_when(lambda: web.requests, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        bed.run("a", pretrained="a")
    interrupting.join()
    bed.run("ab", pretrained="ab")
    assert bed.outcomes() == {"a": "fits", "b": "fits"}
    assert web.downloads["model.safetensors"] == 1
    assert len(bed.fetches()) == 1


def test_a_download_whose_submission_got_no_answer_is_not_started_twice(cluster, tmp_path, web):
    bed = Bed(tmp_path, cluster, web, DropsAfterSubmit(cluster.login()))
    bed.run("a", pretrained="a")
    assert (bed.outcomes(), len(bed.fetches())) == ({"a": "fits"}, 1)
    bed.close()


def test_cancelling_a_run_cancels_downloads_that_no_other_run_needs(bed, web):
    web.slow_s = 60
    bed.pretrained = "a"
    interrupting = call_when(lambda: web.requests, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        bed.run("a", pretrained="a")
    interrupting.join()
    assert bed.runner({}).cancel() == ["a"]
    wait_for(lambda: not bed.cluster.query("squeue", "--noheader"), 30)


def test_each_node_without_a_shared_folder_downloads_its_own_copy(cluster, tmp_path, web):
    bed = Bed(tmp_path, cluster, web, shared=False)
    bed.run("a", pretrained="a")
    assert bed.outcomes() == {"a": "fits"}
    (said,) = bed.cache.glob("fetched/*/paths.txt")
    paths = said.read_text().splitlines()
    assert len(paths) == 2 * len(set(paths)) == 4
    bed.close()


def pack_archive(folder, path):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname="set")
    return path


@pytest.mark.parametrize("source", ["folder", "archive", "URL"])
def test_data_is_uploaded_or_downloaded_once_and_named_by_its_checksum(bed, web, tmp_path, source):
    (folder := tmp_path / "texts").mkdir()
    (folder / "train.jsonl").write_text(json.dumps({"instruction": "count", "output": "one"}) + "\n")
    given, sha256 = str(folder), None
    if source != "folder":
        archive = pack_archive(folder, tmp_path / "set.tgz")
        given, sha256 = str(archive), hashlib.sha256(archive.read_bytes()).hexdigest()
    if source == "URL":
        (served := tmp_path / "served").mkdir()
        archive.rename(served / "set.tgz")
        web.repos["models/team/data"] = served
        given = f"{web.url}/team/data/resolve/main/set.tgz"
    cache = f"{bed.cluster.home}/testbed-{tmp_path.name}/cache"
    bed.data = dataset.prepare_remote_dataset(given, sha256, cache, ["alpaca2k"])
    for row in "ab":
        bed.runner({}).run(sample_rows.rows_to_run(*bed.specs(row, data=bed.data.data, data_sha256=bed.data.sha256)))
    assert bed.outcomes() == {"a": "fits", "b": "fits"}
    assert (bed.cache / "data" / f"{bed.data.sha256}-alpaca2k" / "train.jsonl").exists()
    assert bed.data.sha256 == (sha256 or dataset.folder_sha256(folder))
    assert len(bed.fetches()) == 1


def test_a_real_row_trains_on_downloaded_artifacts_without_the_hub(bed, web, tmp_path):
    facts = models()[MODEL]
    build_random(facts, "tiny", torch.float32, None, torch.device("cpu")).save_pretrained(tmp_path / "model")
    (texts := tmp_path / "set").mkdir()
    (texts / "train.jsonl").write_text("".join(json.dumps({"text": "good " * 20}) + "\n" for _ in range(20)))
    web.repos |= {f"models/{REPO}": tmp_path / "model", "datasets/stanfordnlp/imdb": texts}
    settings: dict[str, Any] = {
        "engine": "hf_trainer",
        "model": MODEL,
        "dataset": "imdb",
        "max_length": 16,
        "max_steps": 2,
    }
    row = training.spec(row="a", weights="pretrained", data="hub", time_limit_s=200, **settings)
    bed.runner({}).run(sample_rows.rows_to_run(row))
    web.error_status = REFUSED
    bed.runner({}, WORKER_MODULE).run(sample_rows.rows_to_run(row))
    (result,) = bed.folder.results().values()
    assert (result.outcome, result.weights_commit, result.data_commit) == ("fits", COMMIT, COMMIT), result.reason
    assert len(bed.fetches()) == 2
