"""Predictions of tiny rows by the tracer."""

from unittest.mock import MagicMock, call

import pytest

from experiments.prediction.predict import predict
from experiments.prediction.tracer import PhantomMeter
from experiments.system.files import GIB
from tests.experiments.prediction.miniatures import ROWS

TRACED = [name for name in ROWS if name != "refused"]
FULL = 4  # bytes of a parameter in 32 bit

pytestmark = pytest.mark.xdist_group("tracer")


def in_bytes(traced, name: str, share: str) -> int:
    """Return the memory of one kind at the row's peak, bytes."""
    return round(getattr(traced.predictions[name].at_peak, f"{share}_gib") * GIB)


@pytest.mark.parametrize("name", TRACED)
def test_every_engine_and_strategy_can_be_traced(traced, name):
    assert name in traced.predictions, traced.problems.get(name)


@pytest.mark.parametrize("name", TRACED)
def test_the_peak_is_the_sum_of_its_parts_and_no_part_is_negative(traced, name):
    prediction = traced.predictions[name]
    assert prediction.at_peak.total_gib == pytest.approx(prediction.peak_gib)
    assert all(share >= 0 for share in prediction.at_peak.model_dump().values())


@pytest.mark.parametrize("name", TRACED)
def test_the_needed_memory_lies_between_allocated_and_reserved_memory(traced, name):
    prediction = traced.predictions[name]
    assert prediction.peak_gib <= prediction.needed_gib <= prediction.reserved_gib


@pytest.mark.parametrize("name", ["adamw", "sgd", "ddp", "adam_8bit", "hf_trainer", "litgpt", "litgpt_trainer"])
def test_parameters_in_32_bit_take_four_bytes_each(traced, name):
    assert in_bytes(traced, name, "params") == FULL * traced.predictions[name].parameters


@pytest.mark.parametrize("name", ["adamw", "ddp", "fsdp", "hf_trainer", "litgpt", "litgpt_trainer"])
def test_adam_has_two_values_per_parameter(traced, name):
    assert in_bytes(traced, name, "optimizer") == 2 * in_bytes(traced, name, "params")


def test_the_second_rank_has_a_shard_of_its_own(traced, library_cache):
    (second,) = predict([ROWS["fsdp"]], library_cache, rank=1)
    assert second.rank == 1
    assert second.at_peak.params_gib == pytest.approx(traced.predictions["fsdp"].at_peak.params_gib, rel=0.01)


def test_a_forward_pass_of_a_row_begins_a_micro_step():
    """The micro-step is logged after the phase has begun: it belongs to this forward pass."""
    phantom = MagicMock()
    meter = PhantomMeter(phantom)
    logged = []
    for phase in ("forward", "backward", "forward", "backward", "optimizer step"):
        phantom.reset_mock()
        meter.begin(phase)
        calls = [one for one in phantom.mock_calls if one[0] in ("operation_count", "log_operation")]
        assert calls[0] == call.operation_count()
        logged.append(calls[1:])
    micro_step = [call.log_operation('["host::micro_step"]')]
    assert logged == [micro_step, [], micro_step, [], []]


def test_sgd_has_no_optimizer_state(traced):
    assert in_bytes(traced, "sgd", "optimizer") == 0


def test_8_bit_adam_has_two_bytes_per_parameter_of_large_tensors(traced):
    params = in_bytes(traced, "adam_8bit", "params")
    assert params / 2 < in_bytes(traced, "adam_8bit", "optimizer") < 2 * params


def test_the_state_of_adamw_on_the_host_takes_only_host_memory(traced):
    found, params_gib = traced.predictions["adamw_cpu"], in_bytes(traced, "adamw", "params") / GIB
    assert in_bytes(traced, "adamw_cpu", "optimizer") == 0
    assert found.optimizer_cpu_gib == pytest.approx(2 * params_gib, rel=1e-3)
    assert 2 * params_gib < found.host_gib < 3 * params_gib
    assert found.peak_gib < traced.predictions["adamw"].peak_gib - params_gib
    assert found.time.host_s > traced.predictions["adamw"].time.host_s
    assert traced.predictions["adamw"].host_gib is None


def test_offloaded_activations_take_host_memory_in_place_of_gpu_memory(traced):
    offload, usual = traced.predictions["offload"], traced.predictions["large batch"]
    saved_gib = usual.memory.peak_by_phase_gib["forward"] - offload.memory.peak_by_phase_gib["forward"]
    assert saved_gib > 0.3 * usual.memory.peak_by_phase_gib["forward"]
    assert offload.host_gib > saved_gib


def test_selective_checkpointing_saves_a_part_of_the_activations(traced):
    names = "checkpointing", "selective", "large batch"
    peaks = [traced.predictions[name].memory.peak_by_phase_gib["forward"] for name in names]
    assert peaks == sorted(set(peaks))


def test_at_the_optimizer_step_every_parameter_has_its_gradient(traced):
    assert traced.predictions["litgpt"].peak_phase == "optimizer step"
    assert in_bytes(traced, "litgpt", "grads") == in_bytes(traced, "litgpt", "params")


def test_ddp_has_buckets_in_addition_to_the_gradients(traced):
    buckets = in_bytes(traced, "ddp", "buffers") - in_bytes(traced, "adamw", "buffers")
    assert buckets == pytest.approx(in_bytes(traced, "ddp", "grads"), rel=0.02)


def test_fsdp_on_two_ranks_has_half_of_everything_on_each(traced):
    for share in ("params", "optimizer"):
        half = in_bytes(traced, "adamw", share) / 2
        assert in_bytes(traced, "fsdp", share) == pytest.approx(half, rel=0.02)


def test_qlora_trains_adapters_in_16_bit_on_weights_in_4_bit(traced):
    prediction = traced.predictions["qlora"]
    assert prediction.trainable_parameters < 0.01 * prediction.parameters
    assert in_bytes(traced, "qlora", "optimizer") == 2 * 2 * prediction.trainable_parameters
    assert in_bytes(traced, "qlora", "params") < 2 * prediction.parameters


def test_a_miniature_fits_and_has_its_peak_in_its_second_step(traced):
    prediction = traced.predictions["adamw"]
    assert (prediction.predicted_outcome, prediction.failure, prediction.retries) == ("fits", None, 0)
    assert prediction.peak_step == 1


@pytest.mark.parametrize(("name", "phase"), [("too long", "backward"), ("far too long", "forward")])
def test_the_prediction_for_a_row_that_does_not_fit_names_the_step_and_the_phase_in_which_it_ends(traced, name, phase):
    prediction = traced.predictions[name]
    failure = prediction.failure
    assert prediction.predicted_outcome == "oom"
    assert (failure.phase, failure.step, failure.micro_step) == (phase, 0, 0)
    assert failure.message == f"{failure.requested_gib:.2f} GiB more does not fit"
    assert prediction.peak_gib > prediction.usable_gib >= prediction.limited_reserved_gib
    assert prediction.limited_reserved_gib + failure.requested_gib > prediction.usable_gib


def test_a_row_that_does_not_fit_is_traced_completely(traced):
    prediction = traced.predictions["too long"]
    assert (prediction.peak_step, prediction.peak_phase) == (1, "backward")
    assert prediction.memory.snapshots


@pytest.mark.parametrize("name", ["adamw", "ddp", "hf_trainer", "litgpt", "litgpt_trainer"])
def test_a_step_takes_at_least_the_time_of_the_host_and_that_of_the_gpu(traced, name):
    time = traced.predictions[name].time
    assert time.step_s >= (1 - 1e-9) * max(time.host_s, sum(time.device_s.values())) > 0
    assert {"matrix products", "optimizer"} <= set(time.device_s)


def test_the_prediction_of_a_compiled_row_has_the_memory_without_compilation_and_no_time(traced):
    compiled, usual = traced.predictions["compiled"], traced.predictions["litgpt"]
    assert (compiled.peak_gib, compiled.at_peak, compiled.time) == (usual.peak_gib, usual.at_peak, None)


def test_packed_texts_are_counted_without_padding(traced):
    packed = traced.predictions["packed"]
    assert packed.at_peak.params_gib == traced.predictions["litgpt"].at_peak.params_gib
    assert {"optimizer", "attention", "indexing"} <= set(packed.time.device_s)


def test_only_rows_on_several_gpus_spend_time_on_transfers_between_gpus(traced):
    assert traced.predictions["adamw"].time.link_s == 0
    assert traced.predictions["ddp"].time.link_s > 0
    assert traced.predictions["fsdp"].time.link_s > 0
