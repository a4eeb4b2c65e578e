"""Which rows may share a GPU, and how many at a time."""

from typing import Any

import pytest

from experiments.errors import InputError
from experiments.results.run_folder import Run
from experiments.runners.base import Target
from experiments.runners.local import sharing
from experiments.runners.local.sharing import OUTSIDE_LIMIT_GIB, max_row_gib, shared_rows_per_gpu
from experiments.runners.targets import ContainerTarget, LocalTarget, expected_target
from experiments.suites.cards import card_named
from experiments.suites.suite import suite_named
from provision.hardware import gpus
from provision.models import Gpu
from tests.support.results import in_memory
from tests.support.runners.rows import GPU, ON_CPU, node, spec

H200 = Gpu(0, "NVIDIA H200", 139.8, "GPU-0")
SECOND = Gpu(1, "NVIDIA H200", 139.8, "GPU-1")
SLICE = "h100_1g_12gb"
UNUSED = {0: 0.0, 1: 0.0}
SHARING = in_memory.run(share_gpus=True)


def shared(*rows: Any, card: str = SLICE, on: Any = None, claims: Any = None, used_gib: Any = None) -> int:
    stated = [{"id": row.row, "settings": {}} for row in rows]
    on = on or node(H200, cpus=64)
    limited = [row.model_copy(update={"card": card}) for row in rows]
    return shared_rows_per_gpu(limited, in_memory.suite(stated, claims), on, used_gib or UNUSED)


def many(count: int = 40) -> list[Any]:
    return [spec(f"row-{number}") for number in range(count)]


def rejection(*rows: Any, **options: Any) -> str:
    with pytest.raises(InputError, match=r"^--share-gpus: ") as caught:
        shared(*rows, **options)
    return str(caught.value)


def compared(quantity: str, row: str = "a", **bounds: Any) -> list[dict[str, Any]]:
    check = {"row": row, "quantity": quantity, **(bounds or {"over_row": "b", "low": 1.1})}
    return [{"id": "so", "says": "It is so.", "checks": [check]}]


def test_as_many_rows_share_a_gpu_as_their_limits_and_contexts_fit_into_its_memory():
    needed_gib = card_named(SLICE).usable_gib + OUTSIDE_LIMIT_GIB
    assert max_row_gib(SLICE) == needed_gib
    assert shared(*many()) == int(139.8 / needed_gib) == 12
    assert shared(*many(), card="a100_40gb") == 3
    assert shared(*many(), used_gib={0: 20.0}) == int(119.8 / needed_gib) == 10


def test_no_more_rows_share_a_gpu_than_there_are_cores_and_rows():
    assert shared(*many(), on=node(H200, cpus=5)) == 5
    assert shared(*many(), on=node(H200, SECOND, cpus=10)) == 5
    assert shared(*many(3), on=node(H200, SECOND, cpus=10)) == 2
    assert "2 cores for 2 GPUs; allowed: two cores for each GPU" in rejection(*many(), on=node(H200, SECOND, cpus=2))


def test_a_gpu_without_memory_for_two_rows_is_rejected():
    assert rejection(*many(2), card="a100_80gb") == (
        "--share-gpus: GPU 0 (NVIDIA H200) has 139.8 GiB free, but two rows for a100_80gb need 159.2 GiB;"
        " allowed: a GPU with that much free memory, a smaller --card, or no --share-gpus"
    )
    assert "GPU 1 (NVIDIA H200) has 9.8 GiB free" in rejection(
        *many(2), on=node(H200, SECOND, cpus=8), used_gib={0: 0.0, 1: 130.0}
    )


@pytest.mark.parametrize("device", [GPU, Gpu(0, "unknown model", 79.2, "GPU-2")])
def test_sharing_is_rejected_on_a_gpu_that_is_as_large_as_the_card(device):
    assert "has the memory of a100_80gb, and a row for a100_80gb uses all of it; allowed: a larger GPU" in rejection(
        spec(), card="a100_80gb", on=node(device, cpus=8)
    )


def test_rows_share_the_cores_even_without_a_gpu():
    assert "no GPU; omit --share-gpus: without GPUs, rows always share the cores" in rejection(spec(), on=node())


def test_the_error_for_rows_that_cannot_share_a_gpu_names_them_and_those_that_can():
    rows = [spec("a", devices=2), spec("b", **ON_CPU), spec("c", nodes=2), spec("d"), spec("e")]
    assert rejection(*rows) == (
        "--share-gpus: a, c: needs 2 GPUs, not one; b: runs on the CPU;"
        " allowed: --row d --row e, or run these rows without --share-gpus"
    )
    tiny = rejection(spec("a", size="tiny"))
    assert tiny.endswith("a: tiny models have no memory limit; allowed: run these rows without --share-gpus")


@pytest.mark.parametrize(
    ("claims", "card", "may_share"),
    [
        (compared("samples_per_s"), "v100_16gb", False),
        (compared("samples_per_s"), SLICE, True),  # an H200 has eight times the multiprocessors of the slice
        (compared("samples_per_s", row="b", over_row="a", low=1.1), "v100_16gb", False),
        (compared("mfu", low=0.5), "v100_16gb", False),
        (compared("train_s", low=1.0), "v100_16gb", True),  # seconds are not evaluated on another GPU than the card
        (compared("gpu_util_percent", low=50.0), SLICE, False),
        (compared("peak_gib"), "v100_16gb", True),
    ],
)
def test_a_row_whose_times_or_load_are_evaluated_on_this_gpu_has_it_to_itself(claims, card, may_share):
    rows = [spec(row) for row in "abc"]
    if may_share:
        assert shared(*rows, card=card, claims=claims) > 1
        return
    message = rejection(*rows, card=card, claims=claims)
    assert "other rows would disturb " in message
    assert ", on which statements are evaluated" in message
    of_both = claims[0]["checks"][0].get("over_row")
    assert message.startswith("--share-gpus: a, b: " if of_both else "--share-gpus: a: ")
    assert message.endswith(f"allowed:{'' if of_both else ' --row b'} --row c, or run these rows without --share-gpus")


def test_a_row_with_a_reference_value_of_a_time_or_load_has_its_gpu_to_itself_too():
    suite = suite_named("multi_gpu_litgpt")
    run = in_memory.run("7b-1gpu", suite=suite.suite, card="v100_32gb")
    with pytest.raises(
        InputError, match=r"^--share-gpus: 7b-1gpu: other rows would disturb .*processes.* and training time, on"
    ):
        shared_rows_per_gpu([run.spec(suite, "7b-1gpu")], suite, node(H200, cpus=8), UNUSED)


@pytest.mark.parametrize("name", ["single_gpu_blip2", "single_gpu_litgpt"])
def test_all_rows_of_the_labs_for_a_seventh_of_an_h100_share_an_h200(name):
    suite = suite_named(name)
    run = in_memory.run(*(row.id for row in suite.rows_for(SLICE)), suite=name, card=SLICE)
    specs = [run.spec(suite, row) for row in run.rows]
    assert shared_rows_per_gpu(specs, suite, node(H200, cpus=16), UNUSED) == 12


@pytest.mark.parametrize("target", [ContainerTarget(node(H200), "current"), expected_target(node(H200), 1)])
def test_sharing_is_rejected_for_jobs_and_containers_because_they_get_whole_gpus(target: Target):
    with pytest.raises(InputError, match=r"^--share-gpus: jobs and containers get whole GPUs; allowed with --site"):
        target.rows_per_gpu(SHARING, in_memory.suite())
    assert target.rows_per_gpu(in_memory.run(), in_memory.suite()) == 1


def test_the_runner_of_this_machine_subtracts_gpu_memory_that_other_programs_use(monkeypatch):
    monkeypatch.setattr(gpus, "used_gib", lambda indices: dict.fromkeys(indices, 100.0))
    run: Run = in_memory.run("a", "b", "c", "d", share_gpus=True, card=SLICE)
    target = LocalTarget(node(H200, cpus=8))
    assert target.rows_per_gpu(run, in_memory.suite([{"id": row} for row in "abcd"])) == 3
    assert target.rows_per_gpu(run.model_copy(update={"share_gpus": False}), in_memory.suite()) == 1


def test_errors_name_the_option_that_requests_sharing():
    from experiments.run_options import OPTION_USES, RunOptions
    from experiments.system.options import fields_with_options

    flags = {field.name: option.flag for field, option in fields_with_options(RunOptions)}
    assert flags["share_gpus"] == sharing.FLAG
    assert OPTION_USES["share_gpus"].identifies_run
