"""If the weights of a model are missing on this computer, create the model from its configuration."""

from pathlib import Path
from typing import Any

from experiments.prediction.script.traced.missing import substitutes
from experiments.prediction.script.traced.missing.network import connection


def explain_missing_configurations() -> None:
    """Replace transformers' function that reads a configuration, so that its error names the missing configuration."""
    from transformers.configuration_utils import PreTrainedConfig

    read = PreTrainedConfig.get_config_dict.__func__  # type: ignore[attr-defined]

    def get_config_dict(cls: Any, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        name = pretrained_model_name_or_path
        try:
            return read(cls, name, **options)
        except OSError as error:
            on_hub = f"not in the Hugging Face cache, and {connection.state}"
            place = "no config.json in this folder" if Path(name).is_dir() else on_hub
            substitutes.explain(
                error,
                f"the configuration of '{name}' ({place}); download it once with network (hf download {name} "
                "config.json), or put its config.json into a folder and pass the path of the folder",
            )
            raise

    PreTrainedConfig.get_config_dict = classmethod(get_config_dict)  # type: ignore[arg-type, assignment, method-assign]


def replace_missing_weights() -> None:
    """Replace transformers' from_pretrained, so that a model without weights can be created from its configuration.

    The model has the shapes and data types of the published model, but no values; it is quantized and placed as if it
    had been loaded. The configuration must be available.
    """
    from transformers.modeling_utils import PreTrainedModel

    load_pretrained = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *arguments: Any, **options: Any) -> Any:
        name = pretrained_model_name_or_path
        try:
            return load_pretrained(cls, name, *arguments, **options)
        except OSError as error:  # raised by transformers if weights are missing
            if substitutes.explanation(error):
                raise
            if not substitutes.allowed():
                substitutes.explain(
                    error, f"the weights of '{name}'; {substitutes.FLAG} makes them up from the model's configuration"
                )
                raise
            model = _model_without_values(load_pretrained, cls, name, arguments, options)
            substitutes.add_note(f"the weights of '{name}' are missing and were made up from its configuration")
            return model

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment, method-assign]


def _model_without_values(
    load_pretrained: Any, model_class: Any, name: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """Return the model that ``load_pretrained`` returns for weights without values."""
    from transformers import PreTrainedConfig

    config, others = options.pop("config", None), options
    if not isinstance(config, PreTrainedConfig):
        config, others = model_class.config_class.from_pretrained(config or name, return_unused_kwargs=True, **options)
    weights = _weights_without_values(model_class, config)
    model = load_pretrained(model_class, None, *arguments, config=config, state_dict=weights, **others)
    model.name_or_path = model.config.name_or_path = str(name)
    return model


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
