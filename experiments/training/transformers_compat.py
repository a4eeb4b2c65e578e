"""Hide the differences between Transformers 4 (the labs' version) and Transformers 5 from all other code."""

from typing import Any

import huggingface_hub
import transformers
from torch import nn

VERSION_5 = int(transformers.__version__.partition(".")[0]) >= 5


def pil_image_processor() -> Any:
    """Return the BLIP image processor that needs only Pillow.

    In Transformers 5 the old class name refers to the processor that needs torchvision.
    """
    return transformers.BlipImageProcessorPil if VERSION_5 else transformers.BlipImageProcessor


def checkpointed_layers() -> set[type[nn.Module]]:
    """Return the layer classes that activation checkpointing applies to.

    In Transformers 5 these classes have one base class. In Transformers 4 each model has its own class; this function
    lists the classes of the models in models.yaml.
    """
    if VERSION_5:
        from transformers.modeling_layers import GradientCheckpointingLayer

        return {GradientCheckpointingLayer}
    from transformers.models.blip_2.modeling_blip_2 import Blip2EncoderLayer, Blip2QFormerLayer
    from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoBlock
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer
    from transformers.models.opt.modeling_opt import OPTDecoderLayer
    from transformers.models.t5.modeling_t5 import T5Block

    return {Blip2EncoderLayer, Blip2QFormerLayer, GPTNeoBlock, LlamaDecoderLayer, OPTDecoderLayer, T5Block}


def checksum_mismatches(repository: str, kind: str, commit: str | None) -> list[str]:
    """Return the cached paths of a repository on the Hugging Face hub whose checksums differ from those on the hub.

    kind: 'model' or 'dataset'. Returns an empty list with Transformers 4, whose hub library cannot compare checksums.
    """
    if not VERSION_5:
        return []
    report = huggingface_hub.verify_repo_checksums(repository, repo_type=kind, revision=commit)
    return [mismatch["path"] for mismatch in report.mismatches]
