"""Build the model of a training program: its class, precision, quantization and adapters."""

import inspect
from functools import partial
from typing import Any

import torch
import transformers
from accelerate import dispatch_model, init_empty_weights
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.quantizers import AutoHfQuantizer

from experiments.errors import InputError
from experiments.prediction.loops.job import LoopJob, LoopLora
from experiments.training.failures import first_line
from experiments.training.models.activation_offload import offload_activations
from experiments.training.models.architecture import build_config, has_untied_output_head
from experiments.training.models.build import reject_adapters_of_experts
from experiments.training.models.chunked_loss import chunk_causal_loss
from experiments.training.models.device_map import spread_evenly
from experiments.training.models.weights import fill_randomly, find_device

DTYPES = {
    "32-true": torch.float32,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "bf16-mixed": torch.float32,
    "16-mixed": torch.float32,
}
"""Data type of the parameters by precision."""
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Data type of autocast by mixed precision."""
MODEL_TASKS = (
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "IMAGE_TEXT_TO_TEXT",
    "MASKED_LM",
    "CAUSAL_LM",
    "IMAGE_CLASSIFICATION",
    "CTC",
    "AUDIO_CLASSIFICATION",
    "SEQUENCE_CLASSIFICATION",
    "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "SEMANTIC_SEGMENTATION",
    "OBJECT_DETECTION",
)
"""Tasks of transformers' model classes. If a configuration names no class, the first task with a class decides."""
SOUND_INPUTS = {"input_features", "input_values"}
"""Names of the inputs for a sound: for its spectrum, and for its waveform."""
LORA_DROPOUT = 0.05
DECODER_START_TOKEN = 0
"""Id of the token that begins the decoder's text if the configuration names none."""
PADDING_TOKEN = 0
"""Id of the token that pads texts if the configuration names none. Its value affects no size."""


def build_model(job: LoopJob) -> Any:
    """Return the model with random weights, on the host, or on the GPU if it is quantized.

    Raises InputError for an unknown class, and for settings that the class does not support.
    """
    config = complete_config(build_config(job.model, "full"))
    config.use_cache = False
    model_class = choose_class(config, job)
    dtype = DTYPES[job.precision]
    options = {"attn_implementation": job.attention} if job.attention else {}
    try:
        if job.quantization:
            model = build_on_gpus(model_class, config, job)
        else:
            model = model_class._from_config(config, dtype=dtype, **options)
    except (ValueError, ImportError) as error:
        raise InputError(f"{model_class.__name__}: {first_line(error)}") from None
    if has_untied_output_head(job.model):
        _untie_output_head(model)
    if job.checkpointing:
        if not model.supports_gradient_checkpointing:
            raise InputError(f"--activation-checkpointing: {model_class.__name__} does not support it")
        model.gradient_checkpointing_enable()
    if "return_loss" in input_names(model):
        model.forward = partial(model.forward, return_loss=True)  # models of texts and images return no loss otherwise
    model_with_adapters = _add_adapters(model, job, job.lora) if job.lora else model
    if job.fsdp == 1:
        reject_adapters_of_experts(model_with_adapters)
    if job.chunked_loss:
        chunk_causal_loss(model)
    if job.offload:
        offload_activations(model_with_adapters)
    return model_with_adapters


def complete_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the configuration. In that of an encoder-decoder model, set the ids of special tokens that are missing."""
    if config.is_encoder_decoder:
        for name, token in (("decoder_start_token_id", DECODER_START_TOKEN), ("pad_token_id", PADDING_TOKEN)):
            if getattr(config, name, None) is None:
                setattr(config, name, token)
    return config


def choose_class(config: PretrainedConfig, job: LoopJob) -> Any:
    """Return the model class: --model-class, else the one in the configuration, else the first class for MODEL_TASKS.

    Raises InputError if transformers has no such class, or if the class does not support the configuration.
    """
    name = job.model_class or next(iter(config.architectures or ()), None)
    if model_class := getattr(transformers, name or "", None):
        if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
            raise InputError(
                f"--model-class {name}: not a model class of transformers; allowed: {', '.join(class_names(config))}"
            )
        if not isinstance(config, model_class.config_class):  # type: ignore[arg-type]
            raise InputError(f"--model-class {name}: does not support model_type {config.model_type}")
        return _reject_detector(model_class)
    if job.model_class:
        raise InputError(
            f"--model-class {name}: transformers has no such class; allowed: {', '.join(class_names(config))}"
        )
    possible_names = class_names(config)
    if not possible_names:
        tasks = ", ".join(task.lower().replace("_", " ") for task in MODEL_TASKS)
        raise InputError(
            f"model_type = {config.model_type!r}: transformers has no class for these tasks: {tasks}; "
            "choose a class with --model-class"
        )
    return _reject_detector(getattr(transformers, possible_names[0]))


def _reject_detector(model_class: Any) -> Any:
    """Return the class. Raises InputError if its loss depends on values of boxes, which the phantom device lacks."""
    if "ObjectDetection" in model_class.__name__:
        raise InputError(
            f"{model_class.__name__}: its loss checks and matches boxes by their values, which are unknown without a"
            " GPU; allowed: classes for other tasks"
        )
    return model_class


def class_names(config: PretrainedConfig) -> list[str]:
    """Return the names of all classes for the configuration, the most common task first."""
    names: list[str] = []
    for task in MODEL_TASKS:
        mapping: Any = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING", {})
        if type(config) in mapping:
            classes = mapping[type(config)]
            names += [model_class.__name__ for model_class in (classes if isinstance(classes, tuple) else (classes,))]
    return list(dict.fromkeys(names))


def build_on_gpus(model_class: Any, config: PretrainedConfig, job: LoopJob) -> Any:
    """Return the model as from_pretrained loads it with a device map: over ``job.gpus`` GPUs, quantized on request.

    The weights are created on their GPUs, not on the host.
    """
    dtype = DTYPES[job.precision]
    if job.attention:
        config._attn_implementation = job.attention
    with init_empty_weights(include_buffers=False):
        model = model_class(config)
    model.tie_weights()
    device_map = spread_evenly(model, dtype, job.gpus)
    quantizer = _quantize_layers(model, job) if job.quantization else None
    fill_randomly(model, dtype, device_map)
    if quantizer:
        quantizer.postprocess_model(model)
        model.hf_quantizer, model.is_quantized = quantizer, True
    if job.gpus > 1:
        _move_buffers(model, device_map)
        return dispatch_model(model, device_map, skip_keys=model._skip_keys_device_placement)
    if job.quantization == "8bit":  # such a model rejects `to`, and its parameters are already on the GPU
        _move_buffers(model, device_map)
        return model
    return model.to("cuda")


def _quantize_layers(model: Any, job: LoopJob) -> Any:
    """Replace layers by those of bitsandbytes; return the quantizer."""
    compute_dtype = AUTOCAST.get(job.precision, DTYPES[job.precision])
    quantization = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype)
        if job.quantization == "4bit"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    quantizer = AutoHfQuantizer.from_config(quantization)
    quantizer.preprocess_model(model=model, device_map=None, keep_in_fp32_modules=model._keep_in_fp32_modules or [])
    return quantizer


def _move_buffers(model: torch.nn.Module, device_map: dict[str, Any]) -> None:
    """Move each buffer to the GPU of its part, as from_pretrained does; ``dispatch_model`` moves only parameters."""
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(find_device(f"{path}.{name}", device_map)))


def _untie_output_head(model: Any) -> None:
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is embeddings.weight:
        head.weight = torch.nn.Parameter(torch.empty_like(head.weight))


def _add_adapters(model: Any, job: LoopJob, lora: LoopLora) -> Any:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if job.quantization:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=job.checkpointing)
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)

    def add_with_dropout(dropout: float) -> Any:
        config = LoraConfig(r=lora.r, lora_alpha=2 * lora.r, lora_dropout=dropout, target_modules=targets)
        return get_peft_model(model, config)

    if lora.dropout is None and _has_experts(model):
        return add_with_dropout(0.0)
    try:
        return add_with_dropout(LORA_DROPOUT if lora.dropout is None else lora.dropout)
    except ValueError as error:
        raise InputError(f"--lora-targets {lora.targets}, --lora-dropout {lora.dropout}: {error}") from None


def _has_experts(model: torch.nn.Module) -> bool:
    """Return True if experts (mixture of experts) share one tensor. Adapters of this tensor support no dropout."""
    return any(type(part).__name__.endswith("Experts") for part in model.modules())


def input_names(model: Any) -> list[str]:
    """Return the names of the model's inputs.

    If the model accepts both the spectrum and the waveform of a sound, only the input that its encoder expects is
    returned.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = list(inspect.signature(base.forward).parameters)
    if not {*names} >= SOUND_INPUTS:
        return names
    expected = getattr(getattr(base, "encoder", base), "main_input_name", "input_values")
    return [name for name in names if name not in SOUND_INPUTS or name == expected]
