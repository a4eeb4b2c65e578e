"""If the weights of a model are missing on this computer, create the model from its configuration."""

from typing import Any


def replace_missing_weights() -> None:
    """Replace transformers' from_pretrained, so that a model without weights is created from its configuration.

    The model has the shapes and data types of the published model, but no values; it is quantized and placed as if it
    had been loaded. The configuration must be available.
    """
    from transformers import PreTrainedConfig, PreTrainedModel

    load_pretrained = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def from_pretrained(cls: Any, name: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return load_pretrained(cls, name, *arguments, **options)
        except OSError:  # raised by transformers if weights are missing
            config, others = options.pop("config", None), options
            if not isinstance(config, PreTrainedConfig):
                config, others = cls.config_class.from_pretrained(config or name, return_unused_kwargs=True, **options)
            weights = _weights_without_values(cls, config)
            model = load_pretrained(cls, None, *arguments, config=config, state_dict=weights, **others)
            model.name_or_path = model.config.name_or_path = str(name)
            return model

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment, method-assign]


def _weights_without_values(model_class: Any, config: Any) -> dict[str, Any]:
    """Return the weights that a saved model has, without values, in the data type of the configuration.

    Their memory is never touched. Transformers initializes all other weights, as it does when it loads a saved model.
    So the same random numbers are drawn, and the data is shuffled in the same order. Of tied weights, only one is
    returned, as in a saved model.
    """
    import torch
    import transformers

    saved_class = getattr(transformers, next(iter(config.architectures or ()), ""), model_class)
    with torch.device("meta"):
        model = saved_class(config)
    model.tie_weights()
    float_dtype = getattr(config, "dtype", None) or torch.float32
    tensors = {id(tensor): (name, tensor) for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    return {
        name: torch.empty(tensor.shape, dtype=float_dtype if tensor.is_floating_point() else tensor.dtype, device="cpu")
        for name, tensor in tensors.values()
    }
