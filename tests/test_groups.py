"""One worker of pytest-xdist runs all tests of a group."""

import pytest


@pytest.mark.xdist_group("one worker")
def test_the_scheduler_gets_the_group_of_a_test(request):
    grouped = request.config.getoption("loadgroup", False)
    assert request.node.nodeid.endswith("@one worker") == grouped
