"""Files of the hub: a fake on this machine serves miniatures; the library that fetches them is the real one."""

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
from experiments.training.data.fetch_hub import bring
from experiments.training.models.weights import build_random, load_pretrained
from tests.support.fake_hub import COMMIT
from tests.support.trainings import GPT_NEO, OPT

CPU = torch.device("cpu")
NAME = "team/small"


@pytest.fixture
def repo(web, tmp_path):
    """A model on the hub that is no model, to be fetched alone."""
    (folder := tmp_path / "published").mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "README.md"):
        (folder / name).write_text(f"{name} of {NAME}")
    web.repos[f"models/{NAME}"] = folder
    return folder


def weights() -> Artifact:
    return Artifact(kind="weights", name=NAME)


@pytest.mark.parametrize("name", [GPT_NEO, OPT])
def test_published_weights_are_loaded_as_they_are_and_their_version_noted(web, tmp_path, name):
    made = build_random(models()[name], "tiny", torch.float32, None, CPU)
    made.save_pretrained(tmp_path / "made")
    web.repos[f"models/{models()[name].hub}"] = tmp_path / "made"
    loaded = load_pretrained(models()[name], "tiny", torch.float32, None, CPU)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in made.state_dict().items())
    assert loaded.config._commit_hash == COMMIT


def test_what_was_fetched_is_read_when_the_hub_is_gone(web, tmp_path, monkeypatch):
    facts = models()[GPT_NEO]
    build_random(facts, "tiny", torch.float32, None, CPU).save_pretrained(tmp_path / "made")
    web.repos[f"models/{facts.hub}"] = tmp_path / "made"
    bring(Artifact(kind="weights", name=facts.hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = web.requests
    assert load_pretrained(facts, "tiny", torch.float32, None, CPU).config._commit_hash == COMMIT
    assert web.requests == asked


def test_of_a_model_only_what_rows_read_is_fetched(web, repo):
    assert {path.name for path in bring(weights())} == {"config.json", "model.safetensors"}
    (repo / "model.safetensors").rename(repo / "pytorch_model-00001-of-00001.bin")
    assert "README.md" not in web.asked


def test_a_download_says_how_far_it_is(web, repo, monkeypatch, capsys):
    monkeypatch.setattr(requirements, "PROGRESS_INTERVAL_S", -1.0)
    assert run_fetch(weights().model_dump_json(), bring) == 0
    assert re.search(r"^[\d.e-]+ of [\d.e-]+ GiB$", capsys.readouterr().err, re.MULTILINE)


def test_weights_that_are_not_safetensors_are_fetched_as_they_are(web, repo):
    (repo / "model.safetensors").unlink()
    assert {path.name for path in bring(weights())} == {"config.json", "pytorch_model.bin"}


def test_what_is_there_is_not_fetched_again(web, repo):
    assert bring(weights()) == bring(weights())
    assert set(web.asked.values()) == {1}


def test_what_is_fetched_later_is_of_the_version_that_is_there(web, repo, monkeypatch):
    first = bring(weights())
    web.commit = COMMIT[::-1]
    tokenizer = bring(Artifact(kind="tokenizer", name=NAME))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert {path.parent.name for path in [*first, *tokenizer]} == {COMMIT}
    assert hub.fetch_weights(NAME).folder / "config.json" in first


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_spoiled_file_is_fetched_again_once(web, repo, name):
    web.spoils[name] = 1
    (place,) = [path for path in bring(weights()) if path.name == name]
    assert place.read_bytes() == (repo / name).read_bytes()
    assert web.asked[name] == 2


def test_a_file_that_is_spoiled_twice_is_an_error_that_names_it(web, repo, capsys):
    web.spoils["model.safetensors"] = 2
    assert run_fetch(weights().model_dump_json(), bring) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "the weights of 'team/small': model.safetensors has another checksum than the hub states, fetched twice"
    )
    assert web.asked["model.safetensors"] == 2


@pytest.mark.parametrize("kind", ["weights", "tokenizer"])
def test_what_the_hub_does_not_have_is_refused_in_one_line(web, kind, capsys):
    assert run_fetch(Artifact(kind=kind, name="team/none").model_dump_json(), bring) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"the {kind} of 'team/none' cannot be loaded (")
    assert "404" in said


def test_a_hub_that_refuses_is_named_with_its_answer(web, repo):
    web.refuses = 403
    with pytest.raises(InputError, match=r"^the weights of 'team/small' cannot be loaded \(.*403 Forbidden"):
        bring(weights())


def test_texts_of_the_hub_are_fetched_and_read(web, tmp_path):
    (folder := tmp_path / "set").mkdir()
    (folder / "train.jsonl").write_text(json.dumps({"text": "good"}) + "\n")
    web.repos["datasets/stanfordnlp/imdb"] = folder
    web.spoils["train.jsonl"] = 1
    assert [path.name for path in bring(Artifact(kind="texts", name="imdb"))] == ["train.jsonl"]
    assert web.asked["train.jsonl"] == 2


def test_files_of_the_hub_have_its_version_and_those_of_a_folder_none(repo):
    found = hub.fetch(NAME, ["*.json"], "x")
    assert (found.commit, {path.name for path in found.folder.iterdir()}) == (COMMIT, {"config.json", "tokenizer.json"})
    assert hub.fetch(str(repo), ["*.json"], "x") == hub.Published(repo)


def test_a_model_that_is_not_published_is_refused():
    with pytest.raises(InputError, match=r"^the tokenizer of this model: not known to be published"):
        hub.fetch("", [], "the tokenizer")
