"""Differences between two environments, and which of the two has the same result as another environment."""

from experiments.blame.observation import Observation, find_difference, rejection_of
from tests.support.results.fake_index import fake_observation


def test_an_environment_counts_as_good_or_bad_by_the_nearer_of_both_values():
    found = find_difference(fake_observation(10.0), fake_observation(12.0), None)
    assert found
    assert found.sentence == "row: peak memory 10 GiB → 12 GiB (+20 %)"
    assert [found.side(fake_observation(value)) for value in (10.4, 11.6)] == ["good", "bad"]
    assert found.side(fake_observation(0, "error")) is None


def test_values_that_differ_only_by_rounding_have_no_difference():
    assert find_difference(fake_observation(10.0), fake_observation(10.0005), None) is None


def test_an_observation_stored_by_an_earlier_version_can_be_read():
    stored = fake_observation(10.0).model_dump_json().replace('"measured"', '"figures"')
    assert Observation.model_validate_json(stored) == fake_observation(10.0)


def test_a_row_that_is_rejected_differs_from_one_that_fits():
    found = find_difference(fake_observation(10.0), rejection_of(["row"], "bitsandbytes 0.44.1 needs a GPU"), None)
    assert found
    assert found.sentence == "row: outcome fits → rejected (bitsandbytes 0.44.1 needs a GPU)"
    assert found.side(rejection_of(["row"], "bitsandbytes 0.45.0 needs a GPU")) == "bad"
    assert found.side(rejection_of(["row"], "package torch is missing")) is None


def test_a_changed_status_of_a_statement_counts_before_a_changed_value():
    failed = fake_observation(12.0).model_copy(update={"statuses": {"row/peak_gib": "fail"}})
    flipped = find_difference(fake_observation(10.0), failed, "row/peak_gib")
    assert flipped
    assert (flipped.kind, flipped.side(failed)) == ("statement", "bad")
    assert find_difference(fake_observation(10.0), fake_observation(12.0), "row/reserved_gib") is None
