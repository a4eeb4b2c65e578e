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
from tests.testbed.slurm.runs import GRACE_S, DropsAfterSubmit, SlurmHarness, call_when

MODEL = "gpt-neo-1.3b"
REPO = models()[MODEL].hub
SLOW_S = 4.0
FORBIDDEN = 403


class FetchingHarness(SlurmHarness):
    """Rows with a separate cache on the cluster. The rows in ``pretrained`` read pretrained weights."""

    def __init__(self, path, cluster, web, shell=None, **profile) -> None:
        super().__init__(path, cluster, shell, **{"folder": f"testbed-{path.name}", **profile})
        self.web, self.data = web, None
        self.pretrained = self.setup = ""

    def runner(self, behavior, worker=fake_worker.MODULE) -> SlurmRunner:
        behaviors = ",".join(f"{row}={action}" for row, action in behavior.items())
        own = {"FAKE": behaviors, "FAKE_JOURNAL": str(self.journal), "HF_ENDPOINT": self.web.url}
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

    def statuses(self, row) -> set[str]:
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
def harness(cluster, tmp_path, web):
    made = FetchingHarness(tmp_path, cluster, web)
    yield made
    made.close()
    wait_for(lambda: not made.queue())


def test_rows_wait_for_one_download_of_their_artifacts_while_others_run(harness, web):
    web.slow_s = SLOW_S
    harness.run("abc", pretrained="ab")
    assert harness.outcomes() == dict.fromkeys("abc", "fits"), harness.view.lines
    assert web.downloads == {"config.json": 1, "model.safetensors": 1}
    assert min(harness.begun_at("a"), harness.begun_at("b")) - harness.begun_at("c") > SLOW_S
    assert any(text.startswith(f"queued (Dependency: the weights of {REPO}") for text in harness.statuses("a"))
    assert sum("download job" in line for line in harness.view.lines) == 1
    assert f"the weights of {REPO}: downloaded" in harness.view.lines
    jobs = sorted(harness.cache.parent.glob("*/.jobs/*"))
    assert [(job.name[:2], (job / "fetched").exists()) for job in jobs] == [("a-", True), ("b-", True), ("c-", True)]


def test_a_later_run_does_not_download_complete_artifacts_again(harness, web):
    harness.run("a", pretrained="a")
    asked, jobs = web.requests, len(harness.fetches())
    harness.run("b", pretrained="b")
    assert harness.outcomes() == {"a": "fits", "b": "fits"}
    assert (web.requests, len(harness.fetches())) == (asked, jobs)
    (harness.cache / "huggingface/hub" / f"models--{REPO.replace('/', '--')}/refs/main").unlink()
    next(harness.cache.rglob("model.safetensors")).unlink()
    harness.run("c", pretrained="c")
    assert len(harness.fetches()) == jobs + 1


def test_only_the_rows_that_need_a_failed_download_have_it_as_their_reason(harness, web):
    web.error_status = FORBIDDEN
    harness.run("abc", pretrained="ab")
    assert harness.outcomes() == {"a": "error", "b": "error", "c": "fits"}
    for row in "ab":
        assert harness.reason(row).startswith(
            f"the weights of {REPO} could not be downloaded: the weights of '{REPO}' cannot"
        )
        assert f"{FORBIDDEN} Forbidden" in harness.reason(row)
        assert "\n" not in harness.reason(row)
    web.error_status = None
    harness.run("ab", pretrained="ab")
    assert harness.outcomes() == dict.fromkeys("abc", "fits")


def test_a_row_whose_download_reaches_its_time_limit_has_this_reason(harness, monkeypatch):
    harness.setup = 'case "$SLURM_JOB_NAME" in fetch/*) sleep 600;; esac'
    monkeypatch.setattr(job_script, "STAGING_LIMIT_MIN", 1)
    harness.run("a", pretrained="a")
    assert harness.reason("a").endswith("could not be downloaded: did not end within 1 min")


def test_a_resumed_run_waits_for_the_download_that_it_started_before(harness, web):
    web.slow_s = SLOW_S
    interrupting = call_when(lambda: web.requests, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        harness.run("a", pretrained="a")
    interrupting.join()
    harness.run("ab", pretrained="ab")
    assert harness.outcomes() == {"a": "fits", "b": "fits"}
    assert web.downloads["model.safetensors"] == 1
    assert len(harness.fetches()) == 1


def test_a_download_whose_submission_got_no_response_is_not_started_twice(cluster, tmp_path, web):
    harness = FetchingHarness(tmp_path, cluster, web, DropsAfterSubmit(cluster.login()))
    harness.run("a", pretrained="a")
    assert (harness.outcomes(), len(harness.fetches())) == ({"a": "fits"}, 1)
    harness.close()


def test_cancelling_a_run_cancels_downloads_that_no_other_run_needs(harness, web):
    web.slow_s = 60
    harness.pretrained = "a"
    interrupting = call_when(lambda: web.requests, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        harness.run("a", pretrained="a")
    interrupting.join()
    assert harness.runner({}).cancel() == ["a"]
    wait_for(lambda: not harness.cluster.query("squeue", "--noheader"), 30)


def test_each_node_without_a_shared_folder_downloads_its_own_copy(cluster, tmp_path, web):
    harness = FetchingHarness(tmp_path, cluster, web, shared_folder=False)
    harness.run("a", pretrained="a")
    assert harness.outcomes() == {"a": "fits"}
    (said,) = harness.cache.glob("fetched/*/paths.txt")
    paths = said.read_text().splitlines()
    assert len(paths) == 2 * len(set(paths)) == 4
    harness.close()


def pack_archive(folder, path):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname="set")
    return path


@pytest.mark.parametrize("source", ["folder", "archive", "URL"])
def test_data_is_uploaded_or_downloaded_once_and_named_by_its_checksum(harness, web, tmp_path, source):
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
    cache = f"{harness.cluster.home}/testbed-{tmp_path.name}/cache"
    harness.data = dataset.prepare_remote_dataset(given, sha256, cache, ["alpaca2k"])
    for row in "ab":
        harness.runner({}).run(
            sample_rows.rows_to_run(*harness.specs(row, data=harness.data.data, data_sha256=harness.data.sha256))
        )
    assert harness.outcomes() == {"a": "fits", "b": "fits"}
    assert (harness.cache / "data" / f"{harness.data.sha256}-alpaca2k" / "train.jsonl").exists()
    assert harness.data.sha256 == (sha256 or dataset.folder_sha256(folder))
    assert len(harness.fetches()) == 1


def test_a_real_row_trains_on_downloaded_artifacts_without_the_hub(harness, web, tmp_path):
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
    harness.runner({}).run(sample_rows.rows_to_run(row))
    web.error_status = FORBIDDEN
    harness.runner({}, WORKER_MODULE).run(sample_rows.rows_to_run(row))
    (result,) = harness.folder.results().values()
    assert (result.outcome, result.weights_commit, result.data_commit) == ("fits", COMMIT, COMMIT), result.reason
    assert len(harness.fetches()) == 2
