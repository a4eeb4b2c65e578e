"""A question about any model in any setting, as flags say it, and the row that it is about."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.errors import InputError
from experiments.prediction.predict import peak_spec
from experiments.suites.cards import card_named
from experiments.suites.models import Model, models
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Lora, Optimizer, Precision, Settings, Strategy
from experiments.suites.yaml_schema import checked

SUITE = "question"
OPTIMIZER_STEPS = 2
LORA_DROPOUT = 0.05
ALL_LINEAR = "all-linear"
LORA_TARGETS: dict[str, tuple[str, ...]] = {"opt": ("q_proj", "v_proj"), "t5": ("q", "v")}
LANGUAGE_MODELS = {"blip2-opt": "opt", "blip2-t5": "t5"}
HUB_TIMEOUT_S = 5
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
MODEL_HELP = "a name of models.yaml, the path of a config.json, or an id on the hub (org/name)"


@dataclass(frozen=True)
class CustomTraining:
    """Flags of one question. batch counts samples of one GPU and one micro-step, seq tokens of each text."""

    model: str
    card: str
    batch: int = 1
    seq: int = 512
    accumulate: int = 1
    devices: int = 1
    precision: Precision = "32-true"
    optim: Optimizer | None = None
    strategy: Strategy = "auto"
    activation_checkpointing: bool = False
    lora_r: int | None = None
    lora_targets: str | None = None

    @property
    def spec(self) -> RowSpec:
        """The row that the question is about, for two optimizer steps on texts of one length.

        Raises InputError for what cannot be, or cannot be read.
        """
        card_named(self.card, "--card")
        for flag in ("batch", "seq", "accumulate", "devices", "lora_r"):
            _refuse_below_1(flag, getattr(self, flag))
        own, name = _found(self.model)
        facts = own or models()[name]
        _refuse_longer(self.seq, facts, name)
        return peak_spec(SUITE, name, self.card, self._settings(name, facts), model=own)

    def _settings(self, name: str, facts: Model) -> Settings:
        strategy: Strategy = "ddp" if self.strategy == "auto" and self.devices > 1 else self.strategy
        values = {
            "engine": "lightning",
            "model": name,
            "dataset": "constant",
            "batch_size": self.batch,
            "accumulate": self.accumulate,
            "precision": self.precision,
            "optimizer": self._optimizer(),
            "lr": 1e-4,
            "max_epochs": 1,
            "max_length": self.seq,
            "train_samples": OPTIMIZER_STEPS * self.batch * self.accumulate * self.devices,
            "devices": self.devices,
            "strategy": strategy,
            "activation_checkpointing": self.activation_checkpointing,
            "lora": self._lora(facts),
            "workers": 0,
            "time_limit_s": 900,
        }
        return checked(Settings, values, "question")

    def _optimizer(self) -> Optimizer:
        offloads = self.strategy.startswith("deepspeed")
        if self.optim is None:
            return "deepspeed_cpu" if offloads else "adamw"
        if offloads and self.optim != "deepspeed_cpu":
            raise InputError(f"--optim {self.optim}: allowed with --strategy {self.strategy}: deepspeed_cpu")
        if self.optim == "deepspeed_cpu" and not offloads:
            allowed = "deepspeed_stage_2_offload, deepspeed_stage_3_offload"
            raise InputError(f"--optim deepspeed_cpu: needs --strategy, one of {allowed}")
        return self.optim

    def _lora(self, facts: Model) -> Lora | None:
        if self.lora_r is None:
            if self.lora_targets is not None:
                raise InputError(f"--lora-targets {self.lora_targets}: needs --lora-r, the rank of the adapters")
            return None
        return lora(self.lora_r, facts, self.lora_targets)


def lora(r: int, facts: Model, targets: str | None = None) -> Lora:
    """Adapters of rank ``r``, scaled by two, on ``targets`` (comma-separated; None: what is usual for the model)."""
    names = tuple(name.strip() for name in (targets or "").split(",") if name.strip())
    if targets is not None and not names:
        raise InputError(f"--lora-targets {targets!r}: names of linear layers are needed, or all-linear")
    names = names or LORA_TARGETS.get(_language_model(facts), (ALL_LINEAR,))
    return Lora(r=r, alpha=2 * r, dropout=LORA_DROPOUT, targets="all-linear" if names == (ALL_LINEAR,) else names)


def _language_model(facts: Model) -> str:
    inner = facts.architecture.get("text_config") or facts.architecture
    return LANGUAGE_MODELS.get(facts.family) or str(inner.get("model_type", facts.family))


def _refuse_below_1(flag: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise InputError(f"--{flag.replace('_', '-')} {value}: a whole number above 0 is needed")


def _refuse_longer(seq: int, facts: Model, name: str) -> None:
    """InputError when the model has no positions for so long a text. T5's are relative, without an end."""
    if _language_model(facts) == "t5":
        return
    inner = facts.architecture.get("text_config") or facts.architecture
    positions = inner.get("max_position_embeddings") or inner.get("n_positions")
    if isinstance(positions, int) and seq > positions:
        raise InputError(f"--seq {seq}: {name} has {positions} positions; allowed: 1 to {positions}")


def _found(model: str) -> tuple[Model | None, str]:
    """The model that models.yaml does not have (None: it has it), and the name that it goes by."""
    path, where = Path(model), f"--model {model}"
    if model in models():
        return None, model
    if model.endswith(".json") or path.is_file():
        own = path.parent.resolve().name if path.stem == "config" else path.stem
        return _of_config(_read(path, where), where), own
    if HUB_ID.fullmatch(model):
        return _of_config(_from_hub(model), where), model
    raise InputError(f"{where}: unknown; allowed: {MODEL_HELP}; models.yaml has {', '.join(models())}")


def _read(path: Path, where: str) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        raise InputError(f"{where}: not JSON, not even text") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror}); allowed: {MODEL_HELP}") from None


def _of_config(text: str, where: str) -> Model:
    try:
        config: Any = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f"{where}: not a model's config.json, which has a 'model_type'")
    return Model(family="transformers", architecture=config)


def _from_hub(name: str) -> str:
    """The text of the model's config.json on the hub; asked for once, since hf_hub_download goes on asking for long."""
    try:
        import httpx
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
    except ImportError:
        raise InputError(f"--model {name}: huggingface_hub is not installed; give the path of a config.json") from None
    try:
        url = hf_hub_url(name, "config.json")
        answer = get_session().get(url, headers=build_hf_headers(), timeout=HUB_TIMEOUT_S, follow_redirects=True)
        hf_raise_for_status(answer)
    except (httpx.HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"--model {name}: the hub does not give its config.json ({reason}); give the path of one"
        ) from None
    return str(answer.text)
