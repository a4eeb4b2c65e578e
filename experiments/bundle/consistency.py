"""Find contradictions within a row's result, and between the result, the row's telemetry and a prediction."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import isclose, isfinite
from statistics import fmean

from experiments.results.gpu_load import IDLE_BELOW_PERCENT, OTHER_UTILIZATION, UTILIZATION, Sample, training_samples
from experiments.results.predictions import BORDERLINE_SHARE, Prediction
from experiments.results.schema import Device, Measured, Result, Snapshot
from experiments.suites.cards import Card, cards

SAMPLE_DIGITS = 4
"""Number of decimals of the values in telemetry.csv."""
SPARE_SAMPLES = 3
"""Number of sampling intervals by which the telemetry may show the GPU busy for longer than the training took: one
at each end, and one for a late sample."""
BYTE_GIB = 2**-30
"""One byte in GiB. The tolerances of sums and maxima are one byte or a few bytes."""
MODEL_PARTS = ("params_gib", "grads_gib", "optimizer_gib")


def result_contradictions(result: Result) -> Iterator[str]:
    """Yield each contradiction between values of one result."""
    if result.fingerprint != result.spec.fingerprint:
        yield "the fingerprint does not match the settings"
    yield from _device_contradictions(result)
    for measured in (result, *result.ranks):
        yield from _memory_contradictions(measured)
    yield from _speed_contradictions(result)
    yield from _count_contradictions(result)
    peaks = [rank.memory.peak_gib or 0.0 for rank in result.ranks]
    if peaks and not _nearly_equal(max(peaks), result.memory.peak_gib or 0.0):
        yield "the peak of the row is not the highest peak of its ranks"
    if (result.outcome == "fits") != (result.failure is None) and result.outcome != "rejected":
        yield f"the outcome is {result.outcome}, but a failure is {'stated' if result.failure else 'not stated'}"
    if result.times and not _nearly_equal(sum(result.times.model_dump().values()), result.elapsed_s, 1e-3):
        yield "the durations of the stages do not add up to elapsed_s"


def _device_contradictions(result: Result) -> Iterator[str]:
    device, target = result.device, cards().get(result.spec.card)
    reported_card = cards().get(device.card or "")
    if device.kind != "cuda":
        return
    if reported_card and device.memory_gib is not None and not reported_card.device_has_same_memory(device.memory_gib):
        yield f"the GPU has {device.memory_gib:.2f} GiB, but a {device.card} has {reported_card.memory_gib:.2f} GiB"
    if reported_card and device.compute_capability and device.compute_capability != reported_card.compute_capability:
        found, stated = device.compute_capability, reported_card.compute_capability
        yield f"the GPU has compute capability {found}, but a {reported_card.name} has {stated}"
    if reported_card and not re.search(reported_card.matches, device.name):
        yield f"the GPU is called {device.name!r}, which is not a {reported_card.name}"
    if result.emulated and target and not _device_has_memory_of(device, target):
        found = "not limited" if device.cap_gib is None else f"limited to {device.cap_gib} GiB"
        yield f"the GPU memory is {found}; the emulated {target.name} has {target.usable_gib:.2f} GiB"
    gpus = result.spec.settings.gpus_per_rank
    if result.memory.peak_gib and device.cap_gib and result.memory.peak_gib > device.cap_gib * gpus:
        yield "the peak is above the memory limit"


def _device_has_memory_of(device: Device, card: Card) -> bool:
    """Return whether the device's memory limit, or without a limit its memory, is the memory of ``card``."""
    if device.cap_gib is None:
        return device.memory_gib is not None and card.device_has_same_memory(device.memory_gib)
    return _nearly_equal(device.cap_gib, card.usable_gib, 1e-6)


def _memory_contradictions(measured: Measured) -> Iterator[str]:
    memory = measured.memory
    peak = memory.peak_gib
    for shot in memory.snapshots:
        parts = shot.params_gib + shot.grads_gib + shot.optimizer_gib + shot.activations_gib
        if not _nearly_equal(parts, shot.allocated_gib, 16 * BYTE_GIB):
            yield f"{_point_in_words(shot)}: the parts of the memory do not add up to {shot.allocated_gib:.3f} GiB"
        if peak is None or not shot.allocated_gib <= shot.peak_gib + BYTE_GIB <= peak + 2 * BYTE_GIB:
            yield f"{_point_in_words(shot)}: allocated memory is above its peak so far, or this peak is above the row's"
    if memory.peak_by_phase_gib and not _nearly_equal(max(memory.peak_by_phase_gib.values()), peak or 0.0, BYTE_GIB):
        yield "the peak is not the highest peak of the phases"
    if peak and memory.reserved_gib and memory.reserved_gib < peak - BYTE_GIB:
        yield "less memory is reserved than allocated"
    reserved = [shot.reserved_gib for shot in memory.snapshots if shot.reserved_gib is not None]
    if reserved and memory.reserved_gib is not None and max(reserved) > memory.reserved_gib + BYTE_GIB:
        yield "the row's maximum of reserved memory is below the reserved memory of one of its steps"


def _speed_contradictions(result: Result) -> Iterator[str]:
    speed, settings = result.speed, result.spec.settings
    if any(not isfinite(loss) and result.outcome != "fits" for loss in result.losses):
        yield "a loss is NaN or infinite, but the row failed for another reason"
    if speed is None:
        return
    if result.device.shared:
        yield "the GPU was shared, but the speed is stated"
    if speed.step_s and not _nearly_equal(speed.samples_per_s * speed.step_s, settings.global_batch_size, 1e-6):
        yield f"samples per second, multiplied by seconds per step, is not the batch size {settings.global_batch_size}"
    if speed.train_s > result.elapsed_s:
        yield "the training took longer than the whole row"
    if result.outcome == "fits" and speed.step_s * speed.optimizer_steps > speed.train_s * (1 + speed.spread):
        yield "the steps took longer than the training"


def _count_contradictions(result: Result) -> Iterator[str]:
    counts, settings = result.step_counts, result.spec.settings
    if counts is None or result.outcome != "fits":
        return
    if len(result.losses) != counts.micro_steps or counts.optimizer_steps * settings.accumulate < counts.micro_steps:
        words = f"{counts.optimizer_steps} steps, {counts.micro_steps} micro-steps, {len(result.losses)} losses"
        yield f"{words} do not agree"


def telemetry_contradictions(result: Result, samples: Sequence[Sample]) -> Iterator[str]:
    """Yield each contradiction between a result and its telemetry."""
    rounding = 10**-SAMPLE_DIGITS
    for key, stated in result.telemetry.items():
        column, _, kind = key.rpartition("_")
        if column == OTHER_UTILIZATION:  # stated for the training only, not for all samples
            continue
        values = [float(sample[column]) for sample in samples if column in sample]
        if values and kind in ("mean", "max") and not _nearly_equal(_summary(kind, values), stated, rounding):
            yield f"{key} is {stated:.4g}, telemetry gives {_summary(kind, values):.4g}"
    times = [float(sample["t_s"]) for sample in samples]
    if times and (times != sorted(times) or times[-1] > result.elapsed_s + rounding):
        yield "the telemetry lasts longer than the row, or its samples are not in order"
    while_training = training_samples(samples, None)
    busy = [sample for sample in while_training if float(sample[UTILIZATION]) >= IDLE_BELOW_PERCENT]
    if result.outcome != "fits" or result.speed is None or not busy:
        return
    busy_s = float(busy[-1]["t_s"]) - float(while_training[0]["t_s"])
    if busy_s > result.speed.train_s + SPARE_SAMPLES * _longest_interval_s(times):
        yield f"the training took {result.speed.train_s:.1f} s, but the GPU worked for {busy_s:.1f} s"


def _longest_interval_s(times: Sequence[float]) -> float:
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


def _summary(kind: str, values: Sequence[float]) -> float:
    return fmean(values) if kind == "mean" else max(values)


def prediction_contradictions(result: Result, prediction: Prediction) -> Iterator[str]:
    """Yield each contradiction between a full-size result and the prediction of its row.

    The numbers of parameters and the outcome must agree. Sizes of memory may differ by BORDERLINE_SHARE.
    """
    if result.spec.settings != prediction.spec.settings or result.spec.size != "full":
        return
    for name in ("parameters", "trainable_parameters"):
        stated, predicted = getattr(result, name), getattr(prediction, name)
        if result.outcome == "fits" and stated != predicted:
            yield f"{name}: {stated}, predicted {predicted}"
    if result.outcome == "fits":
        yield from _peak_contradictions(result, prediction)
    decided = prediction.predicted_outcome != "borderline" and result.outcome in ("fits", "oom")
    if decided and result.outcome != prediction.likely_outcome:
        yield f"outcome {result.outcome}, predicted {prediction.likely_outcome}"
    if result.spec.settings.quantization is None:
        yield from _part_contradictions(result, prediction)


def _peak_contradictions(result: Result, prediction: Prediction) -> Iterator[str]:
    """Yield the difference between the measured and the predicted peak, if it is too large.

    The peak of a row on the CPU is the peak of its tensors in host memory. A row on the CPU with quantized weights is
    not compared, because the temporary buffers of bitsandbytes on a CPU have other sizes than on a GPU.
    """
    on_cpu = result.spec.settings.accelerator == "cpu"
    if on_cpu and result.spec.settings.quantization:
        return
    predicted = prediction.host_gib if on_cpu else prediction.peak_gib
    peaks = [rank.memory.peak_gib or 0.0 for rank in result.ranks or (result,)]
    if result.spec.settings.compile:  # the prediction is for the row without compilation; compilation saves memory
        peaks = [max(peak, predicted or 0.0) for peak in peaks]
    if not any(isclose(peak, predicted or 0.0, rel_tol=BORDERLINE_SHARE) for peak in peaks):
        yield f"peak {max(peaks):.2f} GiB, predicted {predicted or 0.0:.2f} GiB"


def _part_contradictions(result: Result, prediction: Prediction) -> Iterator[str]:
    predicted_shots = {(one.step, one.micro_step, one.point): one for one in prediction.memory.snapshots}
    for shot in result.memory.snapshots:
        other = predicted_shots.get((shot.step, shot.micro_step, shot.point))
        for part in MODEL_PARTS if other else ():
            if not isclose(
                getattr(shot, part), getattr(other, part), rel_tol=BORDERLINE_SHARE, abs_tol=BORDERLINE_SHARE
            ):
                yield f"{_point_in_words(shot)}: {part} {getattr(shot, part):.3f}, predicted {getattr(other, part):.3f}"


def _point_in_words(shot: Snapshot) -> str:
    return f"step {shot.step}, {shot.point}"


def _nearly_equal(a: float, b: float, tolerance: float = 1e-9) -> bool:
    return isclose(a, b, rel_tol=1e-9, abs_tol=tolerance)
