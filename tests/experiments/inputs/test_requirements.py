"""Artifacts that rows read and that must be downloaded first."""

import pytest

from experiments.inputs.requirements import Artifact, required_artifacts
from experiments.suites.models import models
from tests.support.runners.rows import spec

LLAMA, NEO, OPT = "tiny-llama-1.1b", "gpt-neo-1.3b", "blip2-opt-2.7b"
DATA = Artifact(kind="data", name="https://data.test/set.tgz?key=secret", sha256="ab", dataset="imdb")


def artifact_kinds(**changes):
    row = spec(**{"weights": "random", "data": "synthetic", **changes})
    return [artifact.kind for artifact in required_artifacts(row, DATA)]


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, []),
        ({"weights": "pretrained"}, ["weights", "tokenizer"]),
        ({"weights": "pretrained", "model": NEO, "dataset": "imdb", "engine": "hf_trainer"}, ["weights"]),
        ({"model": NEO, "dataset": "imdb", "engine": "hf_trainer", "data": "hub"}, ["tokenizer", "texts"]),
        ({"model": NEO, "dataset": "imdb", "engine": "hf_trainer", "data": "hub", "size": "tiny"}, ["texts"]),
        ({"model": NEO, "dataset": "imdb", "engine": "hf_trainer", "data": "/user"}, ["tokenizer", "data"]),
        ({"model": NEO, "dataset": "constant", "engine": "hf_trainer", "data": "hub"}, []),
        ({"data": "/user"}, ["data"]),
    ],
)
def test_the_options_of_a_row_decide_whether_it_needs_weights_tokenizer_texts_or_data(changes, needed):
    assert artifact_kinds(**changes) == needed


def test_rows_of_litgpt_need_converted_weights_and_rows_of_transformers_need_published_weights():
    row = {"weights": "pretrained", "data": "synthetic", "model": LLAMA, "dataset": "constant"}
    found = [required_artifacts(spec(engine=engine, **row))[0] for engine in ("litgpt", "litgpt_trainer", "lightning")]
    assert [artifact.litgpt for artifact in found] == [models()[LLAMA].litgpt] * 2 + [None]
    assert found[0].key == found[1].key != found[2].key


def test_an_artifact_is_named_without_the_secret_part_of_its_url():
    assert str(DATA) == "the data https://data.test/set.tgz"
    assert str(Artifact(kind="weights", name="team/small")) == "the weights of team/small"
