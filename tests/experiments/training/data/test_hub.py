"""Downloads from the hub: a fake server on this machine, the real hub library."""

import json
import re

import pytest
import torch
from huggingface_hub import constants

from experiments.errors import InputError
from experiments.inputs import requirements
from experiments.inputs.requirements import Artifact, run_fetch
from experiments.suites.models import models
from experiments.training.data import hub
from experiments.training.data.fetch_hub import fetch_artifact
from experiments.training.models.weights import build_random, load_pretrained
from tests.support.services.fake_hub import COMMIT
from tests.support.training.tiny_rows import GPT_NEO, OPT

CPU = torch.device("cpu")
NAME = "team/small"


@pytest.fixture
def repo(web, tmp_path):
    """A repository of a model with placeholder files."""
    (folder := tmp_path / "published").mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "README.md"):
        (folder / name).write_text(f"{name} of {NAME}")
    web.repos[f"models/{NAME}"] = folder
    return folder


def weights() -> Artifact:
    return Artifact(kind="weights", name=NAME)


@pytest.mark.parametrize("name", [GPT_NEO, OPT])
def test_published_weights_are_loaded_unchanged_with_their_commit(web, tmp_path, name):
    made = build_random(models()[name], "tiny", torch.float32, None, CPU)
    made.save_pretrained(tmp_path / "made")
    web.repos[f"models/{models()[name].hub}"] = tmp_path / "made"
    loaded = load_pretrained(models()[name], "tiny", torch.float32, None, CPU)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in made.state_dict().items())
    assert loaded.config._commit_hash == COMMIT


def test_downloaded_weights_are_used_without_the_hub(web, tmp_path, monkeypatch):
    base_model = models()[GPT_NEO]
    build_random(base_model, "tiny", torch.float32, None, CPU).save_pretrained(tmp_path / "made")
    web.repos[f"models/{base_model.hub}"] = tmp_path / "made"
    fetch_artifact(Artifact(kind="weights", name=base_model.hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    requests = web.requests
    assert load_pretrained(base_model, "tiny", torch.float32, None, CPU).config._commit_hash == COMMIT
    assert web.requests == requests


def test_only_needed_files_of_a_model_are_downloaded(web, repo):
    assert {path.name for path in fetch_artifact(weights())} == {"config.json", "model.safetensors"}
    (repo / "model.safetensors").rename(repo / "pytorch_model-00001-of-00001.bin")
    assert "README.md" not in web.downloads


def test_a_download_prints_its_progress(web, repo, monkeypatch, capsys):
    monkeypatch.setattr(requirements, "PROGRESS_INTERVAL_S", -1.0)
    assert run_fetch(weights().model_dump_json(), fetch_artifact) == 0
    assert re.search(r"^[\d.e-]+ of [\d.e-]+ GiB$", capsys.readouterr().err, re.MULTILINE)


def test_weights_without_safetensors_are_downloaded_in_pytorch_format(web, repo):
    (repo / "model.safetensors").unlink()
    assert {path.name for path in fetch_artifact(weights())} == {"config.json", "pytorch_model.bin"}


def test_cached_files_are_not_downloaded_again(web, repo):
    assert fetch_artifact(weights()) == fetch_artifact(weights())
    assert set(web.downloads.values()) == {1}


def test_later_downloads_use_the_cached_version(web, repo, monkeypatch):
    first = fetch_artifact(weights())
    web.commit = COMMIT[::-1]
    tokenizer = fetch_artifact(Artifact(kind="tokenizer", name=NAME))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert {path.parent.name for path in [*first, *tokenizer]} == {COMMIT}
    assert hub.fetch_weights(NAME).folder / "config.json" in first


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_with_a_checksum_mismatch_is_downloaded_again_once(web, repo, name):
    web.corruptions[name] = 1
    (place,) = [path for path in fetch_artifact(weights()) if path.name == name]
    assert place.read_bytes() == (repo / name).read_bytes()
    assert web.downloads[name] == 2


def test_a_second_checksum_mismatch_is_an_error_that_names_the_file(web, repo, capsys):
    web.corruptions["model.safetensors"] = 2
    assert run_fetch(weights().model_dump_json(), fetch_artifact) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "the weights of 'team/small': after two downloads, the checksum of model.safetensors differs from that on the "
        "Hugging Face hub"
    )
    assert web.downloads["model.safetensors"] == 2


@pytest.mark.parametrize("kind", ["weights", "tokenizer"])
def test_a_missing_repository_is_an_error_in_one_line(web, kind, capsys):
    assert run_fetch(Artifact(kind=kind, name="team/none").model_dump_json(), fetch_artifact) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"the {kind} of 'team/none' cannot be loaded (")
    assert "404" in message


def test_an_http_error_of_the_hub_is_reported(web, repo):
    web.error_status = 403
    with pytest.raises(InputError, match=r"^the weights of 'team/small' cannot be loaded \(.*403 Forbidden"):
        fetch_artifact(weights())


def test_texts_from_the_hub_are_downloaded_and_read(web, tmp_path):
    (folder := tmp_path / "set").mkdir()
    (folder / "train.jsonl").write_text(json.dumps({"text": "good"}) + "\n")
    web.repos["datasets/stanfordnlp/imdb"] = folder
    web.corruptions["train.jsonl"] = 1
    assert [path.name for path in fetch_artifact(Artifact(kind="texts", name="imdb"))] == ["train.jsonl"]
    assert web.downloads["train.jsonl"] == 2


def test_files_from_the_hub_have_a_commit_and_files_of_a_local_folder_have_none(repo):
    found = hub.fetch_files(NAME, ["*.json"], "x")
    assert (found.commit, {path.name for path in found.folder.iterdir()}) == (COMMIT, {"config.json", "tokenizer.json"})
    assert hub.fetch_files(str(repo), ["*.json"], "x") == hub.VersionedFolder(repo)


def test_a_model_without_a_published_version_is_rejected():
    with pytest.raises(InputError, match=r"^the tokenizer of this model: no published version is known"):
        hub.fetch_files("", [], "the tokenizer")
