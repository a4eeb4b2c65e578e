"""Where Transformers 4 (the material's versions) and Transformers 5 differ for rows; all else runs with both."""

from typing import Any

import huggingface_hub
import transformers
from torch import nn

FIVE = int(transformers.__version__.partition(".")[0]) >= 5


def pil_image_processor() -> Any:
    """BLIP's image processor that needs Pillow alone; since 5 its old name means the one that needs torchvision."""
    return transformers.BlipImageProcessorPil if FIVE else transformers.BlipImageProcessor


def checkpointed_layers() -> set[type[nn.Module]]:
    """What activation checkpointing works on: one kind of layer since 5, before that each model's own.

    Before 5 those of the models of models.yaml.
    """
    if FIVE:
        from transformers.modeling_layers import GradientCheckpointingLayer

        return {GradientCheckpointingLayer}
    from transformers.models.blip_2.modeling_blip_2 import Blip2EncoderLayer, Blip2QFormerLayer
    from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoBlock
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer
    from transformers.models.opt.modeling_opt import OPTDecoderLayer
    from transformers.models.t5.modeling_t5 import T5Block

    return {Blip2EncoderLayer, Blip2QFormerLayer, GPTNeoBlock, LlamaDecoderLayer, OPTDecoderLayer, T5Block}


def differing_from_hub(hub: str, kind: str, commit: str | None) -> list[str]:
    """Paths in the cache whose checksums are not those that the hub states.

    The library of the hub that Transformers 4 takes compares no checksums: with it there are none.
    """
    if not FIVE:
        return []
    seen = huggingface_hub.verify_repo_checksums(hub, repo_type=kind, revision=commit)
    return [mismatch["path"] for mismatch in seen.mismatches]
