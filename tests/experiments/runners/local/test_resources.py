"""What runs side by side."""

from experiments.runners.local.resources import Slots, most_memory_first
from tests.support.rows import GPU, OFFLOAD, node, spec


def second():
    return GPU.__class__(1, GPU.name, GPU.memory_gib, "GPU-b")


def test_a_row_has_its_gpu_to_itself():
    slots = Slots(node(GPU, second(), cpus=8), 64)
    a, b = slots.take(spec()), slots.take(spec())
    assert (a.gpus, b.gpus, a.cores) == ((GPU,), (second(),), 4)
    assert slots.take(spec()) is None
    slots.give_back(a)
    assert slots.take(spec()).gpus == (GPU,)


def test_a_row_of_two_devices_waits_for_both():
    slots = Slots(node(GPU, second()), 64)
    one = slots.take(spec())
    assert slots.take(spec(devices=2)) is None
    slots.give_back(one)
    assert len(slots.take(spec(devices=2)).gpus) == 2


def test_nodes_that_are_parts_of_this_machine_have_gpus_of_their_own():
    slots = Slots(node(GPU, second()), 64)
    assert len(slots.take(spec(nodes=2)).gpus) == 2


def test_the_first_of_several_machines_gives_a_row_its_own_share():
    slots = Slots(node(GPU, second()), 64, nodes=2)
    assert len(slots.take(spec(nodes=2, devices=2)).gpus) == 2


def test_without_gpus_there_are_as_many_slots_as_cores_and_four_at_most():
    assert [Slots(node(cpus=cpus), 64).count for cpus in (1, 2, 16)] == [1, 2, 4]


def test_rows_are_never_together_beyond_the_hosts_memory():
    slots = Slots(node(GPU, second()), 220)
    big = slots.take(spec(**OFFLOAD))
    assert slots.take(spec()) is None
    slots.give_back(big)
    assert slots.take(spec()) is not None


def test_a_row_with_too_much_for_the_host_gets_it_alone():
    slots = Slots(node(GPU, second()), 2)
    assert slots.take(spec()) is not None
    assert slots.take(spec()) is None


def test_a_gpu_that_did_not_become_free_is_not_used_again():
    slots = Slots(node(GPU), 64)
    slots.withdraw(slots.take(spec()))
    assert slots.count == 0
    assert slots.take(spec()) is None


def test_rows_that_need_much_memory_start_first():
    rows = [spec("a"), spec("b", **OFFLOAD), spec("c")]
    assert [row.row for row in most_memory_first(rows)] == ["b", "a", "c"]
    small = [row.model_copy(update={"size": "tiny"}) for row in rows]
    assert [row.row for row in most_memory_first(small)] == ["b", "a", "c"]
