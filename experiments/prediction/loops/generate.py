"""Text generation with transformers' generate.

    python -m experiments.prediction.loops.generate JOB

JOB: a LoopJob as JSON text.
"""

import torch
from transformers import PretrainedConfig

from experiments.errors import InputError
from experiments.prediction.loops.build import PADDING_TOKEN, build_on_gpus, choose_class, complete_config
from experiments.prediction.loops.job import LoopJob, run_program
from experiments.prediction.loops.samples import make_prompt
from experiments.prediction.script.traced.stated import state_sample
from experiments.training.models.architecture import build_config


def generate(job: LoopJob) -> None:
    """Generate ``new_tokens`` tokens for each of ``batch`` prompts, which can be texts, images or sounds.

    Text prompts have ``seq`` tokens. No generated text ends early. Raises InputError if the class generates no text, if
    its inputs are unknown, or if its decoder has too few positions for ``new_tokens``.
    """
    config = complete_config(build_config(job.model, "full"))
    model_class = choose_class(config, job)
    if not model_class.can_generate():
        raise InputError(f"{model_class.__name__}: generates no text; use --model-class with a class that does")
    _reject_long_transcripts(config, job, model_class.__name__)
    model = build_on_gpus(model_class, config, job).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, PADDING_TOKEN
    sample, description = make_prompt(model, job)
    state_sample(description)
    prompts = {name: torch.stack([value] * job.batch).to("cuda") for name, value in sample.items()}
    if "input_ids" in prompts:
        prompts["attention_mask"] = torch.ones_like(prompts["input_ids"])
    model.generate(
        **prompts,
        do_sample=True,
        use_cache=job.kv_cache,
        max_new_tokens=job.new_tokens,
    )


def _reject_long_transcripts(config: PretrainedConfig, job: LoopJob, class_name: str) -> None:
    """Raise InputError if the decoder of an encoder-decoder model has too few positions for the generated tokens."""
    positions = getattr(config, "max_target_positions", None)
    if isinstance(positions, int) and job.new_tokens >= positions:
        raise InputError(
            f"--new-tokens {job.new_tokens}: the decoder of {class_name} has {positions} positions, one for its "
            f"first token; allowed: 1 to {positions - 1}"
        )


if __name__ == "__main__":
    run_program(generate)
