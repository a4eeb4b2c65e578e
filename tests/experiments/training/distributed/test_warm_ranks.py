"""Ranks that are forked from the warm process end as those of new interpreters do (see test_ranks)."""

import re

import pytest

from tests.experiments.training.distributed.test_ranks import (
    FAILURES,
    NAMES,
    check_failure,
    check_user_error,
    let_time_limit_pass_after_hang,
    run_with_fault,
)

LOG = "log.txt"
pytestmark = pytest.mark.usefixtures("ranks_start_warm")


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_ranks_of_two_nodes_connect_and_the_times_of_their_stages_are_recorded(monkeypatch, tmp_path, launcher):
    result = run_with_fault(monkeypatch, tmp_path, nodes=2, devices=1, launcher=launcher)
    assert [(rank.rank, rank.outcome) for rank in result.ranks] == [(0, "fits"), (1, "fits")]
    assert {path.name for path in tmp_path.iterdir()} == NAMES
    times = result.times
    assert sum(times.model_dump().values()) == pytest.approx(result.elapsed_s)
    assert min(times.model_dump().values()) > 0


@pytest.mark.parametrize("fault", FAILURES)
def test_a_failure_of_one_rank_is_the_outcome_of_the_row_and_ends_all_ranks(monkeypatch, tmp_path, fault):
    check_failure(monkeypatch, tmp_path, fault)


def test_if_a_rank_hangs_the_stack_traces_of_all_ranks_are_written_to_the_log(monkeypatch, tmp_path):
    let_time_limit_pass_after_hang(monkeypatch, tmp_path, 25)
    result = run_with_fault(monkeypatch, tmp_path, "hang", time_limit_s=25)
    assert [rank.outcome for rank in result.ranks] == ["timeout"] * 2
    assert re.match(r"rank \d: reached its time limit of 25 s, last seen in the backward phase", result.reason)
    first, second = (tmp_path / LOG).read_text().split("==== rank 1 ====")
    assert "in all_reduce" in first
    assert "in hang" in second


@pytest.mark.parametrize("fault", ["wrong", "wrong, ends late"])
def test_a_user_error_found_by_one_rank_is_raised_by_the_worker(monkeypatch, tmp_path, fault):
    check_user_error(monkeypatch, tmp_path, fault)
