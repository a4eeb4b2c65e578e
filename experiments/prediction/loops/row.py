"""A training loop of the labs: Lightning's Trainer, or LitGPT's own loop.

    python -m experiments.prediction.loops.row SPEC

SPEC: a RowSpec as JSON text. For several ranks, and for DeepSpeed, start this module with torchrun.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO

from experiments.errors import InputError
from experiments.prediction.loops.images import NO_IMAGE
from experiments.prediction.peak import UNLIMITED
from experiments.prediction.script.traced.stated import state_note, state_sample, temporary_folder
from experiments.results.schema import Device
from experiments.suites.row_spec import RowSpec
from experiments.system.files import GIB
from experiments.training.device import process_gpus
from experiments.training.measure.meters import CudaMeter
from experiments.training.models.architecture import build_config
from experiments.training.rank import run_rank


def train(spec: RowSpec) -> None:
    """Train the row.

    Raises InputError for settings that the loop does not support, and if the training fails.
    """
    state_sample(describe_row_sample(spec))
    config = build_config(spec.base_model, "full")
    if spec.base_model.family == "transformers" and getattr(config, "vision_config", None):
        state_note(NO_IMAGE.format(config.model_type))
    device = Device(
        kind="cuda",
        name=spec.card,
        memory_gib=UNLIMITED / GIB,
        cap_gib=UNLIMITED / GIB,
        host_cpus=os.cpu_count() or 1,
        host_memory_gib=0.0,
    )
    with temporary_folder("row") as folder, without_library_output():
        measured = run_rank(spec, folder, CudaMeter(process_gpus(spec.settings)), device)
    if measured.failure:
        raise InputError(f"{spec.settings.model}: does not run with these settings ({measured.reason})")


@contextmanager
def without_library_output() -> Iterator[None]:
    """Hide what Lightning and LitGPT print in the body of the with statement. Tracebacks of errors are shown."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()):
        yield


def describe_row_sample(spec: RowSpec) -> str:
    """Describe a sample of the row in words: texts of one length for the encoder and the decoder."""
    tokens, config = spec.settings.max_length, build_config(spec.base_model, "full")
    text = f"a text of {tokens} tokens"
    return f"{text} for the encoder and {text} for the decoder" if config.is_encoder_decoder else text


if __name__ == "__main__":
    train(RowSpec.model_validate_json(sys.argv[1]))
