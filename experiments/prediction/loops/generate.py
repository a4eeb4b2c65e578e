"""Text generation with transformers' generate.

    python -m experiments.prediction.loops.generate JOB

JOB: a LoopJob as JSON text.
"""

import torch

from experiments.errors import InputError
from experiments.prediction.loops.build import build_on_gpus, choose_class
from experiments.prediction.loops.job import LoopJob, run_program
from experiments.prediction.loops.samples import make_text, text_tokens
from experiments.prediction.script.traced.stated import state_sample
from experiments.training.models.architecture import build_config

PADDING_TOKEN = 0
"""Id of the token that pads texts. Its value affects no size."""


def generate(job: LoopJob) -> None:
    """Generate ``new_tokens`` tokens after each of ``batch`` prompts of ``seq`` tokens. No text ends early."""
    config = build_config(job.model, "full")
    model_class = choose_class(config, job)
    if not model_class.can_generate():
        raise InputError(f"{model_class.__name__}: generates no text; use --model-class with a class that does")
    model = build_on_gpus(model_class, config, job).eval()
    model.generation_config.eos_token_id = None
    tokens = text_tokens(config, job, job.new_tokens)
    state_sample(f"a prompt of {tokens} tokens")
    prompt = torch.stack([make_text(tokens, config)] * job.batch).to("cuda")
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        use_cache=job.kv_cache,
        max_new_tokens=job.new_tokens,
        pad_token_id=PADDING_TOKEN,
    )


if __name__ == "__main__":
    run_program(generate)
