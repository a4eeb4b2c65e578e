"""models.yaml compared with the architectures that transformers builds from it, on the meta device."""

import pytest

from experiments.suites.models import Model, models

pytest.importorskip("torch")
pytest.importorskip("transformers")


def build_full_size(facts: Model):
    """Return the full-size model, on the meta device."""
    from experiments.training.models.weights import meta_model

    return meta_model(facts, "full")


@pytest.mark.parametrize("name", models())
def test_a_model_has_the_stated_number_of_parameters(name):
    assert (
        sum(parameter.numel() for parameter in build_full_size(models()[name]).parameters())
        == models()[name].parameters
    )


SHARED_HEAD = {
    "blip2-opt-2.7b": True,
    "blip2-flan-t5-xxl": False,
    "tiny-llama-1.1b": False,
    "open-llama-3b": False,
    "gpt-neo-1.3b": True,
}


@pytest.mark.parametrize("name", SHARED_HEAD)
def test_the_output_head_is_the_embedding_if_the_published_model_ties_them(name):
    model = build_full_size(models()[name])
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head is embedding) == SHARED_HEAD[name]


def test_encoder_and_decoder_of_t5_share_their_embedding():
    t5 = build_full_size(models()["blip2-flan-t5-xxl"]).language_model
    assert t5.encoder.embed_tokens.weight is t5.decoder.embed_tokens.weight


@pytest.mark.parametrize("name", [name for name, facts in models().items() if facts.family == "llama"])
def test_every_llama_model_of_the_catalog_has_a_name_in_litgpt(name):
    assert models()[name].litgpt


@pytest.mark.parametrize("name", models())
def test_every_model_of_the_catalog_names_its_repository_on_the_hub(name):
    assert models()[name].hub
