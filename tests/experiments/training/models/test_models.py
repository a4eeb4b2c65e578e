from typing import Any

import pytest
import torch
from torch import nn

from experiments.errors import InputError
from experiments.suites.models import Model, models
from experiments.suites.settings import Quantization
from experiments.training.data.captions import SyntheticCaptionDataset
from experiments.training.data.collate import build_caption_collator
from experiments.training.models import build
from experiments.training.models.architecture import build_config
from experiments.training.models.build import build_model
from experiments.training.models.weights import build_random, load_pretrained
from tests.support.training.tiny_rows import GPT_NEO, LLAMA, LORA, LORA_T5, NF4, OPT, T5, spec

CPU = torch.device("cpu")
FAMILIES = [OPT, T5, LLAMA, GPT_NEO]


def tiny_model(name, dtype=torch.float32, quantization=None):
    torch.manual_seed(0)
    return build_random(models()[name], "tiny", dtype, quantization, CPU)


def linear_layers(model):
    return {name: type(layer).__name__ for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def two_batches(name, given):
    """Return two batches of the same captions with different images."""
    config = build_config(models()[name], "tiny")
    captions = SyntheticCaptionDataset(4, config.vision_config.image_size, seed=0)
    collator = build_caption_collator(spec(model=name, input=given), config, captions.texts)
    first = collator([captions[0], captions[1]])
    other = collator([(captions[2][0], captions.texts[0]), (captions[3][0], captions.texts[1])])
    return first, other


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_random_weights_of_a_model_have_the_same_data_type(name, dtype):
    model = tiny_model(name, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_norms_are_one_and_biases_are_zero_and_other_weights_are_random(name):
    for path, parameter in tiny_model(name).named_parameters():
        if parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=4 / parameter.numel() ** 0.5), path
        else:
            assert (parameter == (0 if path.endswith("bias") else 1)).all(), path


def test_in_opt_head_and_embedding_are_tied_and_in_t5_they_are_not():
    opt, t5 = tiny_model(OPT).language_model, tiny_model(T5).language_model
    assert opt.lm_head.weight is opt.get_input_embeddings().weight
    assert t5.lm_head.weight is not t5.get_input_embeddings().weight
    assert t5.encoder.embed_tokens.weight is t5.decoder.embed_tokens.weight is t5.shared.weight


@pytest.mark.parametrize("name", [OPT, T5])
@pytest.mark.parametrize(("given", "seen"), [("as-taught", False), ("with-image", True)])
def test_the_image_reaches_the_loss_only_through_its_placeholders(name, given, seen):
    model = tiny_model(name).eval()
    first, other = two_batches(name, given)
    loss = model(**first).loss
    loss.backward()
    assert loss.isfinite()
    assert (model(**other).loss.item() != loss.item()) == seen
    gradients = [parameter.grad for parameter in model.vision_model.parameters() if parameter.grad is not None]
    assert any(gradient.any() for gradient in gradients) == seen
    assert model.language_model.get_input_embeddings().weight.grad.any()


def test_the_layers_that_transformers_quantizes_are_quantized():
    opt = linear_layers(tiny_model(OPT, quantization=Quantization(kind="nf4")))
    t5: Any = linear_layers(tiny_model(T5, quantization=Quantization(kind="nf4")))
    for layers in (opt, t5):
        assert layers["vision_model.encoder.layers.0.mlp.fc1"] == layers["language_projection"] == "Linear4bit"
        assert layers["language_model.lm_head"] == "Linear"
        assert {kind for name, kind in layers.items() if name.startswith("qformer")} == {"Linear"}
    t5_text = {name: kind for name, kind in t5.items() if name.startswith("language_model.") and "lm_head" not in name}
    assert {kind for name, kind in t5_text.items() if name.endswith(".wo")} == {"Linear"}
    assert {kind for name, kind in t5_text.items() if not name.endswith(".wo")} == {"Linear4bit"}
    opt_text = {kind for name, kind in opt.items() if name.startswith("language_model.model")}
    assert opt_text == {"Linear4bit"}


def test_quantized_weights_are_packed_two_to_a_byte():
    quantized = tiny_model(OPT, quantization=Quantization(kind="nf4")).get_parameter("language_projection.weight")
    assert (quantized.dtype, quantized.numel()) == (torch.uint8, 32 * 32 // 2)
    assert not quantized.requires_grad
    assert quantized.quant_state.quant_type == "nf4"


@pytest.mark.parametrize("nested", [False, True])
def test_the_scales_of_quantized_weights_are_quantized_only_if_the_settings_say_so(nested):
    model = tiny_model(OPT, quantization=Quantization(kind="nf4", double_quantization=nested))
    assert model.get_parameter("language_projection.weight").quant_state.nested == nested


@pytest.mark.parametrize(("name", "lora"), [(OPT, LORA), (T5, LORA_T5)])
@pytest.mark.parametrize("quantization", [None, NF4])
def test_only_32_bit_adapters_on_the_named_layers_are_trained(name, lora, quantization):
    model = build_model(spec(model=name, lora=lora, quantization=quantization), CPU)
    trained = {path: parameter for path, parameter in model.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert {path.split(".")[-4] for path in trained} == set(lora["targets"])
    assert {path.split(".")[-3] for path in trained} == {"lora_A", "lora_B"}
    ranks = {parameter.shape[0] for path, parameter in trained.items() if "lora_A" in path}
    assert ranks == {lora["r"]}


def test_a_model_is_built_in_the_precision_of_the_row_and_in_training_mode():
    assert build_model(spec(precision="bf16-true"), CPU).dtype == torch.bfloat16
    mixed = build_model(spec(precision="bf16-mixed", activation_checkpointing=True), CPU)
    assert (mixed.dtype, mixed.training, mixed.is_gradient_checkpointing) == (torch.float32, True, True)
    assert not build_model(spec(), CPU).is_gradient_checkpointing


@pytest.fixture(scope="module", params=FAMILIES)
def saved_model(request, tmp_path_factory):
    """A model, and a base model whose published weights are in the folder that it was saved to."""
    model, folder = tiny_model(request.param), tmp_path_factory.mktemp("weights")
    model.save_pretrained(folder)
    return model, models()[request.param].model_copy(update={"hub": str(folder)})


def test_saved_weights_are_loaded_unchanged(saved_model):
    model, base_model = saved_model
    loaded = load_pretrained(base_model, "tiny", torch.float32, None, CPU)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == (head is embedding)


def test_a_model_with_random_weights_has_the_layers_and_data_types_of_a_loaded_one(saved_model):
    _, base_model = saved_model
    quantization = Quantization(kind="nf4")
    loaded = load_pretrained(base_model, "tiny", torch.bfloat16, quantization, CPU)
    made = build_random(base_model, "tiny", torch.bfloat16, quantization, CPU)
    assert linear_layers(made) == linear_layers(loaded)
    for path, parameter in loaded.named_parameters():
        random_parameter = made.get_parameter(path)
        assert (random_parameter.dtype, random_parameter.shape) == (parameter.dtype, parameter.shape), path


def test_rows_with_pretrained_weights_load_the_model_s_repository(monkeypatch):
    calls = []
    monkeypatch.setattr(build, "load_pretrained", lambda *choices: calls.append(choices) or tiny_model(OPT))
    build_model(spec(weights="pretrained", precision="bf16-true"), CPU)
    assert calls == [(models()[OPT], "tiny", torch.bfloat16, None, CPU)]


@pytest.mark.parametrize("made", [False, True])
def test_missing_weights_are_rejected_in_one_line(tmp_path, made):
    folder = tmp_path / "weights"
    if made:
        folder.mkdir()
    with pytest.raises(InputError, match=r"^the weights of '.*weights' cannot be loaded \(.+\); weights=random needs"):
        load_pretrained(models()[OPT].model_copy(update={"hub": str(folder)}), "tiny", torch.float32, None, CPU)


BLIP2_CUSTOM: dict[str, Any] = {
    "model_type": "blip-2",
    "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4},
    "qformer_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 64,
    },
    "text_config": {"model_type": "t5", "d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 1, "num_heads": 4},
}
DECODER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
CUSTOM = {
    "GemmaForCausalLM": {"model_type": "gemma", "intermediate_size": 64, "head_dim": 8, **DECODER},
    "MistralForCausalLM": {"model_type": "mistral", "intermediate_size": 64, "num_key_value_heads": 2, **DECODER},
    "MT5ForConditionalGeneration": {
        "model_type": "mt5",
        "d_model": 32,
        "d_ff": 64,
        "d_kv": 8,
        "num_layers": 1,
        "num_heads": 4,
        "vocab_size": 64,
        "tie_word_embeddings": False,
    },
    "BartForConditionalGeneration": {
        "model_type": "bart",
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "vocab_size": 64,
    },
    "Blip2ForConditionalGeneration": BLIP2_CUSTOM,
}
SHARED_HEAD = {"GemmaForCausalLM", "BartForConditionalGeneration", "Blip2ForConditionalGeneration"}


def custom_row(architecture):
    """Return a row with a custom model, not in models.yaml."""
    return spec(own=Model(family="transformers", architecture=architecture), model="anything", size="full")


@pytest.mark.parametrize("kind", CUSTOM)
def test_a_model_of_the_user_is_built_as_transformers_trains_it(kind):
    model: Any = build_model(custom_row(CUSTOM[kind]), CPU)
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert type(model).__name__ == kind
    assert (head is embedding) == (kind in SHARED_HEAD)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert model.training
    assert not model.config.use_cache


def test_an_untied_t5_head_leaves_the_embeddings_shared():
    model: Any = build_model(custom_row(CUSTOM["MT5ForConditionalGeneration"]), CPU)
    assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight is model.shared.weight
    text = BLIP2_CUSTOM["text_config"] | {"tie_word_embeddings": False}
    t5: Any = build_model(custom_row(BLIP2_CUSTOM | {"text_config": text}), CPU).language_model
    assert t5.lm_head.weight is not t5.shared.weight
    assert t5.encoder.embed_tokens.weight is t5.decoder.embed_tokens.weight is t5.shared.weight


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        (
            {"model_type": "lama"},
            r"^model_type = 'lama': .* this configuration \(Unrecognized model identifier: lama\)$",
        ),
        ({"model_type": "llama", "hidden_size": "x"}, r"^model_type = 'llama': transformers rejects .*hidden_si"),
        ({"model_type": "llama", "hidden_size": 7, "num_attention_heads": 2}, r"transformers rejects this conf"),
        (
            {"model_type": "vit"},
            "^model_type = 'vit': transformers has no model with a language head for it; allowed: ",
        ),
    ],
)
def test_an_invalid_architecture_is_rejected_in_one_line(architecture, words):
    with pytest.raises(InputError, match=words) as rejected:
        build_model(custom_row(architecture), CPU)
    assert "\n" not in str(rejected.value)


def test_pretrained_weights_are_rejected_for_a_model_without_published_weights():
    given = custom_row(CUSTOM["GemmaForCausalLM"])
    with pytest.raises(InputError, match=r"^weights = 'pretrained': this model has no known published weights"):
        build_model(given.model_copy(update={"weights": "pretrained"}), CPU)


@pytest.mark.parametrize("name", [LLAMA, GPT_NEO])
@pytest.mark.parametrize("quantization", [None, NF4 | {"double_quantization": True}])
def test_adapters_on_all_linear_layers_leave_out_the_output_head(name, quantization):
    lora = LORA | {"targets": "all-linear"}
    model = build_model(spec(model=name, precision="bf16-true", lora=lora, quantization=quantization), CPU)
    adapted = {path.rsplit(".lora_A", 1)[0] for path, _ in model.named_parameters() if ".lora_A." in path}
    linear = {path for path, layer in model.named_modules() if path.endswith(tuple(LINEAR[name]))}
    assert adapted == linear
    assert len(adapted) == 2 * len(LINEAR[name])


@pytest.mark.parametrize(("name", "layers"), [(GPT_NEO, "c_fc, c_proj"), (T5, "dense, ")])
def test_the_error_for_adapters_on_layers_that_the_model_lacks_names_the_layers(name, layers):
    with pytest.raises(InputError, match=rf"^unknown layer for adapters 'nope'; allowed: .*{layers}.*, all-linear$"):
        build_model(spec(model=name, lora=LORA | {"targets": ["c_fc" if name == GPT_NEO else "q", "nope"]}), CPU)


LINEAR = {
    LLAMA: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    GPT_NEO: ["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"],
}


@pytest.mark.parametrize("name", [LLAMA, GPT_NEO])
def test_a_quantized_model_has_other_weights_in_32_bit_and_checkpoints_activations_as_peft_requires(name):
    model: Any = build_model(spec(model=name, precision="bf16-true", lora=LORA, quantization=NF4), CPU)
    plain = [parameter for parameter in model.parameters() if type(parameter).__name__ != "Params4bit"]
    assert {parameter.dtype for parameter in plain} == {torch.float32}
    assert model.base_model.model.is_gradient_checkpointing
