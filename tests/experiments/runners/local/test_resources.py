"""Rows that run in parallel share the resources of a machine."""

from experiments.runners.local.resources import ResourcePool, most_memory_first
from tests.support.runners.rows import GPU, OFFLOAD, ON_CPU, node, spec


def second_gpu():
    return GPU.__class__(1, GPU.name, GPU.memory_gib, "GPU-b")


def test_a_row_has_its_gpu_to_itself():
    pool = ResourcePool(node(GPU, second_gpu(), cpus=8), 64)
    a, b = pool.allocate(spec()), pool.allocate(spec())
    assert (a.gpus, b.gpus, a.cores) == ((GPU,), (second_gpu(),), 4)
    assert pool.allocate(spec()) is None
    pool.release(a)
    assert pool.allocate(spec()).gpus == (GPU,)


def test_a_row_on_the_cpu_uses_no_gpu_and_runs_alone():
    pool = ResourcePool(node(GPU, second_gpu(), cpus=8), 64)
    row = spec(size="tiny", **ON_CPU)
    on_cpu = pool.allocate(row)
    assert (on_cpu.gpus, on_cpu.cores, len(on_cpu.part_numbers)) == ((), 8, 2)
    assert pool.allocate(row) is None
    assert pool.allocate(spec()) is None
    pool.release(on_cpu)
    on_gpu = pool.allocate(spec())
    assert on_gpu.gpus == (GPU,)
    assert pool.allocate(row) is None
    pool.release(on_gpu)
    assert pool.allocate(row).cores == 8


def test_rows_on_the_cpu_share_a_machine_without_gpus():
    pool = ResourcePool(node(cpus=2), 64)
    row = spec(size="tiny", **ON_CPU)
    assert [pool.allocate(row).cores, pool.allocate(row).cores] == [1, 1]
    assert pool.allocate(row) is None


def test_a_row_of_two_devices_waits_for_both():
    pool = ResourcePool(node(GPU, second_gpu()), 64)
    one = pool.allocate(spec())
    assert pool.allocate(spec(devices=2)) is None
    pool.release(one)
    assert len(pool.allocate(spec(devices=2)).gpus) == 2


def test_a_row_of_two_nodes_on_this_machine_gets_a_gpu_for_each_node():
    pool = ResourcePool(node(GPU, second_gpu()), 64)
    assert len(pool.allocate(spec(nodes=2)).gpus) == 2


def test_of_several_machines_the_first_gives_a_row_only_the_gpus_of_its_own_ranks():
    pool = ResourcePool(node(GPU, second_gpu()), 64, nodes=2)
    assert len(pool.allocate(spec(nodes=2, devices=2)).gpus) == 2


def test_without_gpus_there_are_as_many_slots_as_cores_and_four_at_most():
    assert [ResourcePool(node(cpus=cpus), 64).size for cpus in (1, 2, 16)] == [1, 2, 4]


def test_parallel_rows_never_exceed_the_memory_of_the_host():
    pool = ResourcePool(node(GPU, second_gpu()), 220)
    big = pool.allocate(spec(**OFFLOAD))
    assert pool.allocate(spec()) is None
    pool.release(big)
    assert pool.allocate(spec()) is not None


def test_a_row_that_needs_more_than_the_host_has_runs_alone():
    pool = ResourcePool(node(GPU, second_gpu()), 2)
    assert pool.allocate(spec()) is not None
    assert pool.allocate(spec()) is None


def test_a_gpu_that_is_still_in_use_after_its_row_ended_gets_no_other_row():
    pool = ResourcePool(node(GPU), 64)
    pool.withdraw(pool.allocate(spec()))
    assert pool.size == 0
    assert pool.allocate(spec()) is None


def test_rows_that_need_much_memory_start_first():
    rows = [spec("a"), spec("b", **OFFLOAD), spec("c")]
    assert [row.row for row in most_memory_first(rows)] == ["b", "a", "c"]
    small = [row.model_copy(update={"size": "tiny"}) for row in rows]
    assert [row.row for row in most_memory_first(small)] == ["b", "a", "c"]


def test_free_gpus_are_assigned_in_the_order_of_their_indices_and_not_of_their_release():
    gpus = [GPU.__class__(number, GPU.name, GPU.memory_gib, f"GPU-{number}") for number in range(3)]
    pool = ResourcePool(node(*gpus), 64)
    taken = [pool.allocate(spec()) for _ in gpus]
    for allocation in reversed(taken):
        pool.release(allocation)
    assert [gpu.index for gpu in pool.allocate(spec(devices=2)).gpus] == [0, 1]


def test_rows_that_share_gpus_fill_them_evenly_and_divide_the_cores():
    pool = ResourcePool(node(GPU, second_gpu(), cpus=13), 64, rows_per_gpu=2)
    rows = [pool.allocate(spec()) for _ in range(4)]
    assert [row.gpus for row in rows] == [(GPU,), (second_gpu(),)] * 2
    assert {(row.cores, row.shared) for row in rows} == {(3, True)}
    assert pool.allocate(spec()) is None
    pool.release(rows[1])
    assert pool.allocate(spec()).gpus == (second_gpu(),)


def test_a_row_with_a_gpu_to_itself_does_not_share_it():
    assert not ResourcePool(node(GPU), 64).allocate(spec()).shared


def test_a_shared_gpu_that_an_ended_row_still_uses_gets_no_other_row_and_its_running_rows_continue():
    pool = ResourcePool(node(GPU, second_gpu()), 64, rows_per_gpu=3)
    first, other, neighbor = (pool.allocate(spec()) for _ in range(3))
    pool.withdraw(first)
    assert (first.gpus, neighbor.gpus, pool.size) == ((GPU,), (GPU,), 4), "the neighbor still runs"
    assert [pool.allocate(spec()).gpus for _ in range(2)] == [(second_gpu(),)] * 2
    assert pool.allocate(spec()) is None
    pool.withdraw(neighbor)
    assert pool.size == 3
    pool.release(other)
    assert pool.allocate(spec()).gpus == (second_gpu(),)


def test_rows_that_share_a_gpu_never_exceed_the_memory_of_the_host():
    pool = ResourcePool(node(GPU), 20, rows_per_gpu=4)
    assert [pool.allocate(spec()) is not None for _ in range(3)] == [True, True, False]
