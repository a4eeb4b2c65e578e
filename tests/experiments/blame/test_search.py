"""The bisection over sets of packages; no environment is created."""

from itertools import combinations

import pytest

from experiments.blame.package_groups import PackageGroup
from experiments.blame.search import search

GROUPS = [PackageGroup(frozenset([name]), frozenset([name])) for name in "abcdefghijkl"]


def run(groups, needed, likely=0):
    """Search for packages that are needed together; return them and the number of tests."""
    tests: list[frozenset[str]] = []

    def test(moved, left):
        tests.append(moved)
        return "bad" if needed <= moved else "good"

    return search(groups, likely, test).names, len(tests)


@pytest.mark.parametrize("name", "abcdefghijkl")
def test_a_single_package_is_found_in_at_most_five_tests(name):
    found, tests = run(GROUPS, {name})
    assert found == {name}
    assert tests <= 5


def test_each_pair_of_packages_is_found():
    for pair in combinations("abcdefghijkl", 2):
        assert run(GROUPS, set(pair))[0] == set(pair)


def test_three_packages_that_change_a_value_only_together_are_found():
    assert run(GROUPS, {"b", "g", "l"})[0] == {"b", "g", "l"}


def test_likely_packages_are_tested_first():
    many = [PackageGroup(frozenset([str(number)]), frozenset([str(number)])) for number in range(100)]
    assert run(many, {"3"}, likely=4)[1] <= 4


def test_packages_that_cannot_be_tested_separately_are_named_together():
    found = search(GROUPS[:4], 0, lambda moved, left: None)
    assert (found.names, found.sure) == (frozenset("abcd"), False)
