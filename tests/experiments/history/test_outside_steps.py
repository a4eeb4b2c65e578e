"""The parts of a row's time outside of its steady steps."""

import pytest

from experiments.history.outside_steps import outside_steps, row_parts
from experiments.prediction.predict import suite_row_spec
from experiments.suites.suite import suite_named, suite_names


def parts(suite, row, card="a100_80gb", parameters=0):
    chosen = suite_named(suite)
    return row_parts(suite_row_spec(chosen, chosen.row(row), card).settings, parameters, card)


def outside_s(*row, **options):
    found = parts(*row, **options)
    return outside_steps().row_s(found, *found)


@pytest.mark.parametrize(
    ("longer", "shorter"),
    [
        (("single_gpu_litgpt", "7b-qlora"), ("single_gpu_litgpt", "7b-lora")),
        (("ladder", "llama-1b-compiled"), ("ladder", "llama-1b-packed")),
        (("multi_gpu_litgpt", "7b-4gpu-fsdp"), ("multi_gpu_litgpt", "7b-1gpu")),
        (("beyond", "opt-offload"), ("beyond", "opt")),
        (("slurm_hf_trainer", "neo-1gpu", "v100_32gb"), ("single_gpu_litgpt", "tiny-bf16-true")),
        (("single_gpu_blip2", "reduced-precision", "h100_94gb"), ("single_gpu_blip2", "reduced-precision")),
    ],
)
def test_a_row_with_more_libraries_gpus_or_compiled_kernels_takes_longer_outside_of_its_steps(longer, shorter):
    assert outside_s(*longer) > outside_s(*shorter) + 1


def test_attention_in_32_bit_is_not_compiled_by_cudnn():
    assert parts("single_gpu_blip2", "baseline", "h100_94gb") == parts("single_gpu_blip2", "baseline")


def test_a_model_with_more_parameters_takes_longer_to_build():
    small, large = (parts("single_gpu_litgpt", "13b-sgd", parameters=size)["build"] for size in (0, 13_000_000_000))
    assert outside_steps().stage_s(large) - outside_steps().stage_s(small) == pytest.approx(
        13 * outside_steps().parts["parameters"]
    )


def test_every_part_of_the_time_of_a_lab_s_row_outside_of_its_steps_has_fitted_seconds():
    found = {
        part
        for name in suite_names()
        for card in suite_named(name).cards
        for row in suite_named(name).rows_for(card)
        for stage in parts(name, row.id, card).values()
        for part in stage
    }
    assert found - outside_steps().parts.keys() == set()
