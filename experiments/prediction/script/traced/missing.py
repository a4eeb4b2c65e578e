"""Create models whose weights are missing on this computer from their configuration."""

from typing import Any


def replace_missing_weights() -> None:
    """Replace transformers' from_pretrained, so that a model without weights is created from its configuration.

    The model has the shapes and data types of the published model, but no values. The configuration must be available.
    """
    import torch
    from transformers import PreTrainedModel

    load_pretrained = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def from_pretrained(cls: Any, name: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return load_pretrained(cls, name, *arguments, **options)
        except OSError:  # raised by transformers if weights are missing
            config = options.get("config") or cls.config_class.from_pretrained(name)
            dtype = options.get("dtype") or options.get("torch_dtype") or getattr(config, "dtype", None)
            wanted = getattr(torch, dtype, torch.float32) if isinstance(dtype, str) else dtype or torch.float32
            device = "cuda" if options.get("device_map") else "cpu"
            with torch.device(device):
                return cls._from_config(config, dtype=wanted).eval()

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment, method-assign]
