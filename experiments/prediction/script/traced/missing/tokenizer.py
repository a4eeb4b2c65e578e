"""If the tokenizer of a model is missing on this computer, make one that has a token for each byte of a text."""

from collections.abc import Mapping
from functools import wraps
from typing import Any

from experiments.prediction.script.traced.missing import substitutes
from experiments.prediction.script.traced.missing.network import connection

SPECIAL_TOKENS = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
NO_FILES = "Couldn't instantiate the backend tokenizer"
"""What the ValueError of transformers says if no file of a tokenizer was found. Other errors are of type OSError."""
PLACE_OPTIONS = ("cache_dir", "revision", "subfolder", "token")
"""Options of from_pretrained that state where the files of the model are."""
PASSED_OPTIONS = ("padding_side", "truncation_side", "model_max_length", *(f"{name}_token" for name in SPECIAL_TOKENS))
"""Options of from_pretrained that are passed on to a tokenizer that is made up."""


def replace_missing_tokenizers() -> None:
    """Replace from_pretrained of transformers' tokenizers, so that a missing tokenizer can be made up."""
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    _replace_from_pretrained(PreTrainedTokenizerBase)


def replace_missing_auto_tokenizers() -> None:
    """Replace AutoTokenizer.from_pretrained, so that a missing tokenizer can be made up."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    _replace_from_pretrained(AutoTokenizer)


def _replace_from_pretrained(owner: Any) -> None:
    load = owner.from_pretrained.__func__

    @wraps(load)
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *arguments: Any, **options: Any) -> Any:
        name = pretrained_model_name_or_path
        try:
            tokenizer = load(cls, name, *arguments, **options)
            if _has_only_special_tokens(tokenizer):
                raise OSError(f"the tokenizer of {name} has no vocabulary")
            return tokenizer
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and NO_FILES not in str(error):
                raise
            made_up = _make_tokenizer(name, options) if substitutes.allowed() else None
            if made_up is None:
                why = f" ({connection.state})" if connection.unreachable_reason else ""
                substitutes.explain(
                    error,
                    f"the tokenizer of '{name}'{why}; download it once with network (hf download {name}), or let "
                    f"{substitutes.FLAG} make up a tokenizer of bytes",
                )
                raise
            substitutes.add_note(
                f"the tokenizer of '{name}' is missing and was made up: it has {len(made_up)} tokens and splits texts "
                "into bytes, so texts that the script does not cut or pad are longer than with the real tokenizer"
            )
            return made_up

    owner.from_pretrained = classmethod(from_pretrained)


def _has_only_special_tokens(tokenizer: Any) -> bool:
    """Return whether the vocabulary is missing: Transformers then raises no error, but returns an empty tokenizer."""
    return (
        isinstance(getattr(tokenizer, "vocab_size", None), int) and len(tokenizer) <= len(tokenizer.all_special_ids) + 1
    )


def _make_tokenizer(name: Any, options: Mapping[str, Any]) -> Any:
    """Return a tokenizer of bytes with the vocabulary size of the model; None if this size is too small for all bytes.

    The special tokens have the ids that the configuration of the model states, if it is on this computer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    config = _local_configuration(name, options)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = getattr(config, "vocab_size", None) or len(letters) + len(SPECIAL_TOKENS)
    if size < len(letters) + len(SPECIAL_TOKENS):
        return None
    vocabulary = _number_tokens(_special_ids(config, size), letters, size)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[(token, vocabulary[token]) for token in ("<s>", "</s>")],
    )
    settings = {f"{role}_token": token for role, token in SPECIAL_TOKENS.items()}
    settings |= {"cls_token": "<s>", "sep_token": "</s>"}
    if longest := getattr(config, "max_position_embeddings", None):
        settings["model_max_length"] = longest
    settings |= {name: options[name] for name in PASSED_OPTIONS if options.get(name) is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        name_or_path=str(name),
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
        **settings,
    )


def _local_configuration(name: Any, options: Mapping[str, Any]) -> Any:
    """Return the configuration of the language model ``name`` if it is on this computer, else None."""
    from transformers import AutoConfig

    if config := options.get("config"):
        return config
    places = {key: options[key] for key in PLACE_OPTIONS if key in options}
    trusted = bool(options.get("trust_remote_code"))
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=trusted, **places)
        return config.get_text_config()
    except (OSError, ValueError):
        return None


def _special_ids(config: Any, size: int) -> dict[str, int]:
    """Return the ids that the configuration states, by token. A number that two tokens share belongs to the first."""
    ids: dict[str, int] = {}
    for role, token in SPECIAL_TOKENS.items():
        number = getattr(config, f"{role}_token_id", None)
        if isinstance(number, int) and 0 <= number < size and number not in ids.values():
            ids[token] = number
    return ids


def _number_tokens(special_ids: Mapping[str, int], letters: list[str], size: int) -> dict[str, int]:
    """Return ``size`` tokens and their ids: the special tokens, the letters, and tokens that no text has."""
    free = iter(sorted({*range(size)} - {*special_ids.values()}))
    others = [token for token in SPECIAL_TOKENS.values() if token not in special_ids]
    vocabulary = dict(special_ids) | {token: next(free) for token in (*others, *letters)}
    return vocabulary | {f"<unused {number}>": number for number in free}
