"""Turn samples into batches: tokens, pixels, labels."""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from experiments.suites.row_spec import RowSpec
from experiments.training.data.hub import TOKENIZER_FILES, fetch_files
from experiments.training.transformers_compat import pil_image_processor

SPECIAL_TOKENS = {"opt": ("<s>", "<pad>", "</s>", "<unk>"), "t5": ("<pad>", "</s>", "<unk>")}
IGNORED_LABEL = -100
"""Label of tokens that do not count in the loss, as in PyTorch's cross entropy."""

Batch = dict[str, torch.Tensor]


def caption_tokenizer(texts: list[str], model_type: str, vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer for models with random weights: one token per word, plus one special token per caption.

    The vocabulary consists of the words of ``texts``. The special tokens have the same ids as in the tokenizer of the
    language model.
    """
    special = SPECIAL_TOKENS[model_type]
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        texts,
        trainers.WordLevelTrainer(vocab_size=vocabulary_size - 1, special_tokens=list(special), show_progress=False),
    )
    template = "</s> $A" if model_type == "opt" else "$A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@dataclass
class ImagePlaceholders:
    """Callable that prepends ``count`` image tokens to each text of a batch. Without them, BLIP-2 ignores the image.

    For a decoder-only language model, ``count`` ignored labels are also prepended to the labels of each text.
    """

    count: int
    image_token_id: int
    decoder_only: bool

    def __call__(self, batch: Batch) -> Batch:
        image = torch.full((len(batch["input_ids"]), self.count), self.image_token_id)
        ids = torch.cat([image, batch["input_ids"]], dim=1)
        mask = torch.cat([torch.ones_like(image), batch["attention_mask"]], dim=1)
        labels = batch["labels"]
        if self.decoder_only:
            labels = torch.cat([torch.full_like(image, IGNORED_LABEL), labels], dim=1)
        return batch | {"input_ids": ids, "attention_mask": mask, "labels": labels}


@dataclass
class CaptionCollator:
    """Collate function that turns captioned images into a batch, in the worker process that loads them.

    Shapes: pixel_values (batch, 3, size, size) of ``dtype``, the type in which the model computes; input_ids,
    attention_mask and labels (batch, tokens) int64, padded to the longest caption. If ``placeholders`` is None, input
    and labels consist only of the caption's tokens.
    """

    image_processor: Any
    tokenizer: Any
    max_length: int
    placeholders: ImagePlaceholders | None
    dtype: torch.dtype

    def __call__(self, samples: list[tuple[Image.Image, str]]) -> Batch:
        images, texts = zip(*samples, strict=True)
        pixels = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.dtype)
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        batch = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, "labels": ids}
        return self.placeholders(batch) if self.placeholders else batch


def build_caption_collator(spec: RowSpec, config: Any, texts: list[str]) -> CaptionCollator:
    """Return the collate function of a row with captioned images, for a model with the configuration ``config``."""
    size = config.vision_config.image_size
    tokenizer = (
        AutoTokenizer.from_pretrained(fetch_files(spec.base_model.hub, TOKENIZER_FILES, "the tokenizer").folder)
        if spec.weights == "pretrained"
        else caption_tokenizer(texts, config.text_config.model_type, config.text_config.vocab_size)
    )
    return CaptionCollator(
        image_processor=pil_image_processor()(size={"height": size, "width": size}),
        tokenizer=tokenizer,
        max_length=spec.settings.max_length,
        placeholders=build_placeholders(spec, config),
        dtype=torch.bfloat16 if spec.settings.precision == "bf16-true" else torch.float32,
    )


def build_placeholders(spec: RowSpec, config: Any) -> ImagePlaceholders | None:
    """Return the image placeholders for the input 'with-image'; None for the input 'as-taught', as in the lab."""
    if spec.input == "as-taught":
        return None
    return ImagePlaceholders(config.num_query_tokens, image_token_id(config), config.use_decoder_only_language_model)


def image_token_id(config: Any) -> int:
    """Return the token id of an image placeholder."""
    return int(config.image_token_index if hasattr(config, "image_token_index") else config.image_token_id)
