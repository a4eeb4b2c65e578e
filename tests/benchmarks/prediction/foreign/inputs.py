"""Models, tokenizers and data of the programs: random ones with real shapes, written to one folder.

python -m tests.benchmarks.prediction.foreign.inputs FOLDER [--no-weights]
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = (
    "the",
    "a",
    "model",
    "of",
    "large",
    "small",
    "data",
    "trains",
    "on",
    "text",
    "image",
    "batch",
    "is",
    "not",
    "good",
)
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "[CLS]", "[SEP]", "[MASK]")


def write_inputs(folder: Path, weights: bool = True) -> None:
    """Write all models and data sets. weights: also random weights of the models of transformers."""
    source = random.Random(0)
    _write_texts(folder, source)
    _write_images(folder / "images", source)
    for name, config in _configurations().items():
        _write_model(folder / name, config, weights)
    _write_litgpt(folder / "pythia-410m")


def _sentence(source: random.Random, words: int) -> str:
    return " ".join(source.choices(WORDS, k=words))


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_texts(folder: Path, source: random.Random) -> None:
    def sentence(words: int = 300) -> str:
        return _sentence(source, source.randint(words // 2, words))

    def message(role: str, words: int = 200) -> dict[str, str]:
        return {"role": role, "content": sentence(words)}

    many = range(256)
    _write_lines(folder / "texts/train.jsonl", [{"text": sentence(900)} for _ in many])
    _write_lines(folder / "chats/train.jsonl", [{"messages": [message("user"), message("assistant")]} for _ in many])
    _write_lines(
        folder / "preferences/train.jsonl",
        [{"prompt": sentence(100), "chosen": sentence(), "rejected": sentence()} for _ in many],
    )
    _write_lines(
        folder / "ratings/train.jsonl",
        [{"prompt": sentence(100), "completion": sentence(), "label": bool(n % 2)} for n in many],
    )
    _write_lines(folder / "prompts/train.jsonl", [{"prompt": sentence(60)} for _ in many])
    _write_lines(
        folder / "retrieval/train.jsonl",
        [{"query": sentence(30), "pos": [sentence(200)], "neg": [sentence(200) for _ in range(7)]} for _ in many],
    )
    _write_lines(folder / "pairs/train.jsonl", [{"anchor": sentence(40), "positive": sentence(120)} for _ in many])
    for name in ("nyu-mll/glue", "glue"):
        _write_glue(folder / name, sentence)
    instructions = [{"instruction": sentence(60), "input": "", "output": sentence(200)} for _ in many]
    (folder / "instructions.json").write_text(json.dumps(instructions))
    for number in range(4):
        path = folder / f"plain/{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(sentence(900) for _ in range(100)))


def _write_glue(folder: Path, sentence: Callable[[int], str]) -> None:
    """Write the data set that programs load as `glue`, `mrpc`."""
    for split in ("train", "validation"):
        pairs = [{"sentence1": sentence(60), "sentence2": sentence(60), "label": n % 2, "idx": n} for n in range(256)]
        _write_lines(folder / f"{split}.jsonl", pairs)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: mrpc\n  data_files:\n"
        "  - {split: train, path: train.jsonl}\n  - {split: validation, path: validation.jsonl}\n---\n"
    )


def _write_images(folder: Path, source: random.Random) -> None:
    from PIL import Image

    for number in range(64):
        path = folder / f"class{number % 4}/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((400, 320), source.uniform(20, 80)).convert("RGB").save(path)


def _configurations() -> dict[str, Any]:
    from transformers import BertConfig, GPT2Config, Qwen2Config

    return {
        "qwen2-0.5b": Qwen2Config(
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            dtype="bfloat16",
        ),
        "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
        "bert-base-cased": BertConfig(vocab_size=28996),
    }


def _tokenizer(bert: bool) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]") if bert else models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer() if bert else pre_tokenizers.ByteLevel()
    special = ["[PAD]", "[UNK]", *SPECIAL]
    trainer = (trainers.WordPieceTrainer if bert else trainers.BpeTrainer)(vocab_size=600, special_tokens=special)
    tokenizer.train_from_iterator(WORDS, trainer)
    if not bert:
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", chat_template=CHAT
        )
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
    )


def _write_model(folder: Path, config: Any, weights: bool) -> None:
    from transformers import AutoModel, AutoModelForCausalLM

    bert = config.model_type == "bert"
    folder.mkdir(parents=True, exist_ok=True)
    _tokenizer(bert).save_pretrained(folder)
    config.architectures = ["BertModel" if bert else type(config).__name__.replace("Config", "ForCausalLM")]
    if not bert and config.model_type == "gpt2":
        config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(folder)
    if weights:
        build = AutoModel if bert else AutoModelForCausalLM
        build.from_config(config).save_pretrained(folder)


def _write_litgpt(folder: Path) -> None:
    """Write a checkpoint of LitGPT, whose programs do not start without weights."""
    import torch
    from litgpt import GPT, Config
    from litgpt.utils import save_config

    folder.mkdir(parents=True, exist_ok=True)
    config = Config.from_name("pythia-410m")
    save_config(config, folder)
    _tokenizer(bert=False).save_pretrained(folder)
    torch.save(GPT(config).state_dict(), folder / "lit_model.pth")


if __name__ == "__main__":
    write_inputs(Path(sys.argv[1]), weights="--no-weights" not in sys.argv)
