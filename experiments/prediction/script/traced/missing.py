"""Weights that are not on this computer, made from their configuration."""

from typing import Any


def make_missing_weights() -> None:
    """Replace transformers' from_pretrained: a model whose weights are missing is created from its configuration.

    It has the shapes and data types of the published one, and no values. The configuration itself must be there.
    """
    import torch
    from transformers import PreTrainedModel

    read = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def from_pretrained(cls: Any, name: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return read(cls, name, *arguments, **options)
        except OSError:  # transformers' error for weights that it does not find
            config = options.get("config") or cls.config_class.from_pretrained(name)
            dtype = options.get("dtype") or options.get("torch_dtype") or getattr(config, "dtype", None)
            wanted = getattr(torch, dtype, torch.float32) if isinstance(dtype, str) else dtype or torch.float32
            device = "cuda" if options.get("device_map") else "cpu"
            with torch.device(device):
                return cls._from_config(config, dtype=wanted).eval()

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment, method-assign]
