"""models.yaml against the architectures that transformers builds from it, on the meta device: no memory is taken."""

import pytest

from experiments.recipe import Model, models

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def built(facts: Model):
    """The full-size model without memory behind its parameters."""
    if facts.family in ("blip2-opt", "blip2-t5"):
        from experiments.training.models import build_config, meta_model

        return meta_model(build_config(facts, "full"))
    config, model = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "gpt-neo": (transformers.GPTNeoConfig, transformers.GPTNeoForCausalLM),
    }[facts.family]
    with torch.device("meta"):
        return model(config(**facts.architecture))


@pytest.mark.parametrize("name", models())
def test_the_parameters_of_a_model_are_as_many_as_stated(name):
    assert sum(parameter.numel() for parameter in built(models()[name]).parameters()) == models()[name].parameters


def test_opt_shares_its_head_with_the_embedding_and_t5_does_not():
    opt = built(models()["blip2-opt-2.7b"]).language_model
    t5 = built(models()["blip2-flan-t5-xxl"]).language_model
    assert opt.lm_head.weight is opt.get_input_embeddings().weight
    assert t5.lm_head.weight is not t5.get_input_embeddings().weight
    assert t5.encoder.embed_tokens.weight is t5.decoder.embed_tokens.weight


@pytest.mark.parametrize("name", [name for name, facts in models().items() if facts.family == "llama"])
def test_llama_models_have_a_name_in_litgpt(name):
    assert models()[name].litgpt
