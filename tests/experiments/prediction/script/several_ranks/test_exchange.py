"""What traced ranks send each other: objects, numbers in host memory, integers on the GPU, the values of a store."""

import textwrap

import pytest

from experiments.errors import InputError

START = """
import datetime, math, torch
import torch.distributed as dist
dist.init_process_group("nccl")
rank, size = dist.get_rank(), dist.get_world_size()
kept = torch.zeros(1024, device="cuda")
"""


@pytest.fixture
def trace_ranks(trace):
    """Return a function that traces all ranks of a program of three; the program ends with an error if it is wrong."""

    def trace_ranks(program: str) -> None:
        source = START + textwrap.dedent(program)
        found = trace(source, before=("torchrun", "--nproc-per-node", "3"), all_ranks=True)
        assert [one.rank for one in found] == [0, 1, 2]

    return trace_ranks


def test_an_object_that_a_lower_rank_broadcasts_is_received(trace_ranks):
    trace_ranks("""
        found = [{"run": rank, "names": ["a"] * rank}, rank]
        dist.broadcast_object_list(found, src=0)
        assert found == [{"run": 0, "names": []}, 0]
        found = [rank]
        dist.broadcast_object_list(found, src=1)
        assert found == [None if rank == 0 else 1]
        """)


def test_gathered_objects_come_from_lower_ranks_and_for_higher_ranks_the_rank_s_own_object_is_used(trace_ranks):
    trace_ranks("""
        own = "x" * (1 + rank)
        known = ["x" * (1 + min(other, rank)) for other in range(size)]
        found = [None] * size
        dist.all_gather_object(found, own)
        assert found == known
        found = [None] * size if rank == 1 else None
        dist.gather_object(own, found, dst=1)
        assert found == (known if rank == 1 else None)
        """)


def test_objects_larger_than_the_tensors_whose_values_are_kept_are_exchanged(trace_ranks):
    trace_ranks("""
        found = [b"x" * 2**25 if rank == 0 else None]
        dist.broadcast_object_list(found, src=0)
        assert found == [b"x" * 2**25]
        """)


def test_scattered_and_sent_objects_arrive_at_their_receivers(trace_ranks):
    trace_ranks("""
        found = [None]
        dist.scatter_object_list(found, ["a", {"b": 1}, "c" * 100] if rank == 0 else None, src=0)
        assert found == [["a", {"b": 1}, "c" * 100][rank]]
        found = ["first", "second"] if rank == 0 else [None, None]
        if rank < 2:
            (dist.send_object_list if rank == 0 else dist.recv_object_list)(found, 1 - rank)
            assert found == ["first", "second"]
        """)


def test_tensors_in_host_memory_are_exchanged_with_values_in_groups_of_ranks(trace_ranks):
    trace_ranks("""
        group = dist.new_group([0, 2], backend="gloo")
        assert dist.get_backend() == "nccl"
        if rank != 1:
            assert dist.get_backend(group) == "gloo"
            number = torch.tensor([1.5 + rank])
            dist.broadcast(number, 0, group=group)
            assert number.item() == 1.5
            rows = [torch.zeros(2, dtype=torch.bfloat16) for _ in range(2)]
            dist.all_gather(rows, torch.full((2,), 1.0 + rank, dtype=torch.bfloat16), group=group)
            assert [row[0].item() for row in rows] == [1.0, 1.0 + rank]
            dist.monitored_barrier(group)
        work = dist.isend(torch.tensor(7 + rank), rank + 1) if rank < 2 else None
        received = torch.empty((), dtype=torch.int64)
        if rank:
            dist.recv(received, rank - 1)
            assert received.item() == 6 + rank
        dist.destroy_process_group(group if rank != 1 else None)
        """)


def test_a_reduction_in_host_memory_uses_values_of_lower_ranks_and_for_higher_ranks_its_own(trace_ranks):
    trace_ranks("""
        known = [2 + min(other, rank) for other in range(size)]
        for operation, expected in (
            (dist.ReduceOp.SUM, sum(known)), (dist.ReduceOp.MAX, max(known)), (dist.ReduceOp.MIN, min(known)),
            (dist.ReduceOp.PRODUCT, math.prod(known)), (dist.ReduceOp.BOR, known[0] | known[1] | known[2]),
        ):
            found = torch.tensor([2 + rank])
            dist.all_reduce(found, operation)
            assert found.tolist() == [expected], (operation, found)
        found = torch.tensor([True])
        dist.all_reduce(found, dist.ReduceOp.MIN)
        assert found.tolist() == [True]
        """)


def test_tensors_in_host_memory_are_exchanged_with_values_between_all_ranks(trace_ranks):
    trace_ranks("""
        sent = torch.tensor([10 * rank + receiver for receiver in range(size)])
        known = [10 * other + rank if other < rank else 10 * rank + other for other in range(size)]
        found = torch.zeros(size, dtype=torch.int64)
        dist.all_to_all_single(found, sent)
        assert found.tolist() == known
        rows = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
        dist.all_to_all(rows, list(sent.split(1)))
        assert [row.item() for row in rows] == known
        numbers = torch.zeros(3 * (1 + rank))
        dist.all_to_all_single(numbers, torch.full((6,), 1.0 + rank), [1 + rank] * size, [1, 2, 3])
        assert numbers[: 1 + rank].tolist() == [1.0] * (1 + rank)
        dist.all_to_all_single(torch.empty(6, device="cuda"), torch.empty(6, device="cuda"))
        """)


def test_small_integers_on_the_gpu_are_exchanged_and_a_higher_rank_s_leave_a_rank_s_own_unchanged(trace_ranks):
    trace_ranks("""
        def on_gpu(*values):
            return torch.tensor(values, device="cuda")
        known = [10 + min(other, rank) for other in range(size)]
        for root in range(size):
            found = on_gpu(10 + rank, 5)
            dist.broadcast(found, root)
            assert found.tolist() == [10 + root if root < rank else 10 + rank, 5]
        found = on_gpu(10 + rank)
        dist.all_reduce(found)
        assert found.item() == sum(known)
        rows = [on_gpu(0) for _ in range(size)]
        dist.all_gather(rows, on_gpu(10 + rank))
        assert [row.item() for row in rows] == known
        rows = torch.zeros(size, dtype=torch.int64, device="cuda")
        dist.all_gather_into_tensor(rows, on_gpu(10 + rank))
        assert rows.tolist() == known
        found = torch.zeros(size, dtype=torch.int64, device="cuda")
        dist.all_to_all_single(found, on_gpu(*(10 * rank + receiver for receiver in range(size))))
        assert found.tolist() == [10 * other + rank if other < rank else 10 * rank + other for other in range(size)]
        """)


def test_exchanging_integers_on_the_gpu_allocates_nothing_there_and_unknown_ones_are_not_exchanged(trace_ranks):
    trace_ranks("""
        known, unknown = torch.tensor([rank], device="cuda"), torch.randn(8, device="cuda").argmax()
        large = torch.full((2**18,), rank, device="cuda")
        allocated = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for tensor in (known, unknown, large):
            dist.all_reduce(tensor)
            dist.broadcast(tensor, 0)
        assert torch.cuda.max_memory_allocated() == allocated
        assert known.item() == 0 and large[0].item() == rank
        found = torch.tensor([rank], device="cuda")
        dist.broadcast(found, 0)
        assert found.item() == 0
        """)


def test_tensors_on_the_gpu_are_sent_and_received_as_sizes_without_values(trace_ranks):
    trace_ranks("""
        send = dist.P2POp(dist.isend, torch.ones(4, device="cuda"), (rank + 1) % size)
        receive = dist.P2POp(dist.irecv, torch.empty(4, device="cuda"), (rank - 1) % size)
        for work in dist.batch_isend_irecv([send, receive]):
            work.wait()
        """)


def test_ranks_share_a_store_and_do_not_wait_for_each_other(trace_ranks):
    trace_ranks("""
        store = dist.TCPStore("localhost", 29511, size, rank == 0, timeout=datetime.timedelta(hours=1))
        if rank == 0:
            store.set("name", "run")
            assert store.compare_set("name", "other", "none") == b"run"
        store.wait(["name", "unknown"])
        assert store.get("name") == b"run"
        assert store.add("ranks", 1) == 1 + rank
        assert store.check(["ranks"]) and not store.check(["unknown"])
        store.append("log", "x")
        assert store.multi_get(["name", "log"]) == [b"run", b"x" * (1 + rank)]
        store.set("own", str(rank))
        assert store.num_keys() >= 4 and store.delete_key("own") and not store.delete_key("own")
        (shared, found, ranks), *_ = dist.rendezvous("env://")
        assert (found, ranks) == (rank, size) and not shared.check(["name"])
        """)


def test_reading_a_value_of_a_store_that_only_a_higher_rank_sets_is_an_error_that_names_the_value(trace_ranks):
    with pytest.raises(InputError, match=r"rank 0 reads '.*name' from a store, and no rank from 0 to 0 has set it"):
        trace_ranks("dist.TCPStore('localhost', 29511, size, rank == 0).get('name')")
