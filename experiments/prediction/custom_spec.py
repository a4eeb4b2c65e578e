"""Build the row of a custom training. The model comes from models.yaml, a config.json or the Hugging Face hub."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from math import inf, prod
from pathlib import Path
from typing import Any, Literal, cast, get_args

from experiments.errors import InputError
from experiments.prediction.custom import DEFAULT_NEW_TOKENS, DEFAULT_TOKENS, MODEL_HELP, CustomTraining
from experiments.prediction.predict import CUSTOM_SUITE, peak_spec
from experiments.suites.cards import supported_card
from experiments.suites.choices import Optimizer, Precision
from experiments.suites.model_limits import describe_impossible_size
from experiments.suites.models import Model, models
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Lora, Settings
from experiments.suites.yaml_schema import validate
from provision.files import read_text

OPTIMIZER_STEPS = 2
LORA_DROPOUT = 0.05
ALL_LINEAR: Literal["all-linear"] = "all-linear"
LORA_TARGETS: dict[str, tuple[str, ...]] = {"opt": ("q_proj", "v_proj"), "t5": ("q", "v")}
"""Layers that get adapters by default, by model type; in other models, all linear layers get adapters."""
LANGUAGE_MODELS = {"blip2-opt": "opt", "blip2-t5": "t5"}
"""Model type of the language model inside of each family of BLIP-2."""
HUB_CONNECT_TIMEOUT_S, HUB_ANSWER_TIMEOUT_S = 6.0, 30.0
"""Longest time to connect to the hub, and to wait for each part of its answer, seconds."""
CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 16 << 20
MAX_SAMPLES_PER_STEP = 1 << 24
MAX_TOKENS_PER_MICRO_STEP = 1 << 26
MAX_LORA_RANK = 1 << 16
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def build_row_spec(training: CustomTraining) -> RowSpec:
    """Return the row of a custom training: two optimizer steps on texts of one length.

    Raises InputError if options contradict each other, or if the model cannot be read.
    """
    supported_card(training.card, "--card")
    custom_model, name = _resolve_model(training.model)
    base_model = custom_model or models()[name]
    reject_invalid_numbers(training, base_model, name)
    _reject_options_without_setting(training)
    if training.loop == "litgpt" and base_model.litgpt is None:
        names = ", ".join(name for name, model in models().items() if model.litgpt)
        raise InputError(f"--model {training.model}: with --loop litgpt, allowed: {names}")
    return peak_spec(CUSTOM_SUITE, name, training.card, _build_settings(training, name, base_model), model=custom_model)


def find_model(model: str) -> tuple[Model, str]:
    """Return the model and its name. Raises InputError if the model cannot be read."""
    custom_model, name = _resolve_model(model)
    return custom_model or models()[name], name


def reject_invalid_numbers(training: CustomTraining, base_model: Model, name: str) -> None:
    """Raise InputError for a number that is too small or too large, or for adapter targets without a rank."""
    for field in ("batch", "seq", "packing", "new_tokens", "accumulate", "devices", "lora_r", "target_seq"):
        _reject_below_1(field, getattr(training, field))
    _reject_large_steps(training)
    _reject_long_texts(training, base_model, name)
    if training.lora_r is None and training.lora_targets is not None:
        raise InputError(f"--lora-targets {training.lora_targets}: needs --lora-r, the rank of the adapters")
    if training.lora_dropout is not None:
        _reject_dropout(training.lora_dropout, training.lora_r)


def _reject_options_without_setting(training: CustomTraining) -> None:
    """Raise InputError for an option or a value that the settings of a row do not have."""
    for field in (
        "model_class",
        "target_seq",
        "packing",
        "attention",
        "quantization",
        "clip_gradients",
    ):
        if (value := getattr(training, field)) is not None:
            flag = f"--{field.replace('_', '-')} {value}"
            raise InputError(f"{flag}: allowed with --loop trainer, plain; not with {training.loop}")
    for flag, value, allowed in (
        ("--precision", training.precision, get_args(Precision)),
        ("--optim", training.optim, (None, *get_args(Optimizer))),
    ):
        if value not in allowed:
            names = ", ".join(filter(None, allowed))
            raise InputError(f"{flag} {value}: with --loop {training.loop}, allowed: {names}")


def _build_settings(training: CustomTraining, name: str, base_model: Model) -> Settings:
    strategy = "ddp" if training.strategy == "auto" and training.devices > 1 else training.strategy
    tokens = training.seq or min(DEFAULT_TOKENS, _position_count(base_model) or DEFAULT_TOKENS)
    values = {
        "engine": "litgpt" if training.loop == "litgpt" else "lightning",
        "model": name,
        "dataset": "constant",
        "batch_size": training.batch,
        "accumulate": training.accumulate,
        "precision": training.precision,
        "optimizer": _choose_optimizer(training),
        "lr": 1e-4,
        "warmup_steps": 1 if training.loop == "litgpt" else 0,  # LitGPT's schedule divides by this number
        "max_epochs": 1,
        "max_length": tokens,
        "train_samples": OPTIMIZER_STEPS * training.batch * training.accumulate * training.devices,
        "devices": training.devices,
        "strategy": strategy,
        "activation_checkpointing": training.activation_checkpointing,
        "activation_offload": training.activation_offload,
        "chunked_loss": training.chunked_loss,
        "optimizer_in_backward": training.optimizer_in_backward,
        "lora": _build_optional_lora(training, base_model),
        "workers": 0,
        "time_limit_s": 900,
    }
    return validate(Settings, values, "custom training")


def _choose_optimizer(training: CustomTraining) -> Optimizer:
    uses_offload = training.strategy.startswith("deepspeed")
    if training.optim is None:
        return "deepspeed_cpu" if uses_offload else "adamw"
    if uses_offload and training.optim != "deepspeed_cpu":
        raise InputError(f"--optim {training.optim}: with --strategy {training.strategy}, allowed: deepspeed_cpu")
    if training.optim == "deepspeed_cpu" and not uses_offload:
        allowed = "deepspeed_stage_2_offload, deepspeed_stage_3_offload"
        raise InputError(f"--optim deepspeed_cpu: needs --strategy, one of {allowed}")
    return cast(Optimizer, training.optim)


def _build_optional_lora(training: CustomTraining, base_model: Model) -> Lora | None:
    if training.lora_r is None:
        return None
    return build_lora(training.lora_r, base_model, training.lora_targets, training.lora_dropout)


def build_lora(r: int, base_model: Model, targets: str | None = None, dropout: float | None = None) -> Lora:
    """Return adapters of rank ``r`` with alpha = 2r on ``targets``, comma-separated; None: the model's usual layers.

    dropout: see ``lora_dropout``.
    """
    share = lora_dropout(base_model, dropout)
    return Lora(r=r, alpha=2 * r, dropout=share, targets=lora_targets(base_model, targets))


def lora_dropout(base_model: Model, dropout: float | None) -> float:
    """Return the dropout of adapters. None: LORA_DROPOUT, or 0 for a mixture of experts.

    The experts of a layer share a tensor, and peft's adapters of a tensor (lora.ParamWrapper) support no dropout.
    """
    if dropout is not None:
        return dropout
    return 0.0 if _has_experts(base_model.architecture) else LORA_DROPOUT


def _has_experts(config: Mapping[str, Any]) -> bool:
    """Return whether the configuration, or a part of it, states a number of experts, such as num_local_experts."""
    counts = [value for name, value in config.items() if name.endswith("experts") and isinstance(value, int)]
    return max(counts, default=0) > 1 or any(_has_experts(part) for part in config.values() if isinstance(part, dict))


def lora_targets(base_model: Model, targets: str | None) -> tuple[str, ...] | Literal["all-linear"]:
    """Return the layers that get adapters. Raises InputError if ``targets`` names no layer."""
    names = tuple(name.strip() for name in (targets or "").split(",") if name.strip())
    if targets is not None and not names:
        raise InputError(f"--lora-targets {targets!r}: no layer; allowed: names of linear layers, or all-linear")
    names = names or LORA_TARGETS.get(_language_model(base_model), (ALL_LINEAR,))
    return ALL_LINEAR if names == (ALL_LINEAR,) else names


def _language_model(base_model: Model) -> str:
    inner = base_model.architecture.get("text_config") or base_model.architecture
    return LANGUAGE_MODELS.get(base_model.family) or str(inner.get("model_type", base_model.family))


def _reject_below_1(field: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise InputError(f"--{field.replace('_', '-')} {value}: allowed: a whole number above 0")


def _reject_dropout(dropout: float, rank: int | None) -> None:
    if rank is None:
        raise InputError(f"--lora-dropout {dropout:g}: needs --lora-r, the rank of the adapters")
    if not 0 <= dropout < 1:
        raise InputError(f"--lora-dropout {dropout:g}: allowed: a number from 0 to less than 1")


def _reject_large_steps(training: CustomTraining) -> None:
    """Raise InputError if the data of a step, or the adapters, would fill the memory of this machine."""
    _reject_above(MAX_SAMPLES_PER_STEP, "samples of an optimizer step", training, ("batch", "accumulate", "devices"))
    for length in ("seq", "new_tokens", "target_seq"):
        _reject_above(MAX_TOKENS_PER_MICRO_STEP, "tokens of a micro-step", training, ("batch", length))
    _reject_above(MAX_LORA_RANK, "rank of the adapters", training, ("lora_r",))


def _reject_above(limit: int, what: str, training: CustomTraining, fields: Sequence[str]) -> None:
    values = {field: getattr(training, field) or 1 for field in fields}
    if (product := prod(values.values())) > limit:
        options = " ".join(f"--{field.replace('_', '-')} {value}" for field, value in values.items())
        raise InputError(f"{options}: {what}: {product}; allowed: at most {limit}")


def _reject_long_texts(training: CustomTraining, base_model: Model, name: str) -> None:
    """Raise InputError if a text has more tokens than the model has positions."""
    options, tokens, allowed = f"--seq {training.seq}", training.seq or 1, "1 to"
    if training.task == "generate":
        new_tokens = training.new_tokens or DEFAULT_NEW_TOKENS
        new_option = f"--new-tokens {new_tokens}"
        options = f"{options} {new_option}" if training.seq else f"a prompt and {new_option}"
        tokens, allowed = tokens + new_tokens, "together at most"
    positions, limit = _position_count(base_model), inf
    if positions is not None:
        limit = positions * (training.packing or 1)
    if tokens > limit:
        options += f" --packing {training.packing}" if training.packing else ""
        raise InputError(f"{options}: {name} has {positions} positions; allowed: {allowed} {limit}")
    length = training.seq or min(DEFAULT_TOKENS, positions or DEFAULT_TOKENS)
    if training.packing and training.packing > length:
        raise InputError(f"--packing {training.packing}: a sequence has {length} tokens; allowed: 1 to {length}")


def _position_count(base_model: Model) -> int | None:
    """Return the number of positions that the configuration states, or None. T5 has relative positions, so none."""
    if _language_model(base_model) == "t5":
        return None
    inner = base_model.architecture.get("text_config") or base_model.architecture
    positions = inner.get("max_position_embeddings") or inner.get("n_positions")
    return positions if isinstance(positions, int) else None


def _resolve_model(model: str) -> tuple[Model | None, str]:
    """Return the custom model (None for a model of models.yaml) and its name."""
    path, option_text = Path(model), f"--model {model}"
    if model in models():
        return None, model
    if model and (path / CONFIG_FILE).is_file():
        path = path / CONFIG_FILE
    if path.suffix == ".json" or path.is_file():
        name = path.parent.resolve().name if path.stem == "config" else path.stem
        return _parse_config(_read_text(path, option_text), option_text), name
    if HUB_ID.fullmatch(model):
        return _parse_config(_download_config(model), option_text), model
    raise InputError(f"{option_text}: unknown; allowed: {MODEL_HELP}; models.yaml has {', '.join(models())}")


def _read_text(path: Path, option_text: str) -> str:
    try:
        return read_text(path, MAX_CONFIG_BYTES)
    except UnicodeDecodeError:
        raise InputError(f"{option_text}: not a JSON file: its content is not text") from None
    except OSError as error:
        raise InputError(f"{option_text}: cannot be read ({error.strerror}); allowed: {MODEL_HELP}") from None


def _parse_config(text: str, option_text: str) -> Model:
    try:
        config: Any = json.loads(text, object_pairs_hook=_reject_duplicate_keys)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{option_text}: not a JSON file ({error})") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f"{option_text}: not the config.json of a model: the key 'model_type' is missing")
    if problem := describe_impossible_size(config):
        raise InputError(f"{option_text}: {problem}")
    return Model(family="transformers", architecture=config)


def _reject_duplicate_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r:.40} occurs twice")
        values[key] = value
    return values


@functools.cache
def _download_config(name: str) -> str:
    """Return the text of the model's config.json on the Hugging Face hub.

    If the hub cannot be reached, the text comes from the hub's cache on this machine. Sends a single request, because
    hf_hub_download would retry for too long.
    """
    try:
        import httpx
        from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
    except ImportError:
        raise InputError(f"--model {name}: huggingface_hub is not installed; pass the path of a config.json") from None
    try:
        url = hf_hub_url(name, CONFIG_FILE)
        timeout = httpx.Timeout(HUB_ANSWER_TIMEOUT_S, connect=HUB_CONNECT_TIMEOUT_S)
        response = get_session().get(url, headers=build_hf_headers(), timeout=timeout, follow_redirects=True)
        hf_raise_for_status(response)
    except (httpx.HTTPError, OSError) as error:
        if isinstance(cached := try_to_load_from_cache(name, CONFIG_FILE), str):
            return _read_text(Path(cached), f"--model {name}")
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"--model {name}: cannot download its config.json from the Hugging Face hub ({reason}), and the hub's "
            "cache on this machine does not have it; pass the path of a config.json, or a name of `testbed models`"
        ) from None
    return str(response.text)
