"""The options of a lease that ends itself, and the error in one line for options that contradict each other."""

from datetime import timedelta

import pytest

from experiments.cli.parsing.end_when_idle import EndWhenIdleOptions
from experiments.errors import InputError
from provision.errors import BadTime
from provision.leasing.request import EndWhenIdle


@pytest.fixture
def key(tmp_path):
    (tmp_path / "key").write_text("a key")
    return tmp_path / "key"


def test_a_lease_does_not_end_itself_unless_the_option_end_when_idle_is_given():
    assert EndWhenIdleOptions().parse(1) is None


def test_end_when_idle_is_parsed_with_and_without_a_target_for_results(key):
    assert EndWhenIdleOptions("30m").parse(1) == EndWhenIdle(timedelta(minutes=30))
    with_target = EndWhenIdleOptions("1h", "me@host.edu:~/results", key).parse(1)
    assert with_target == EndWhenIdle(timedelta(hours=1), "me@host.edu:~/results", key)


@pytest.mark.parametrize(
    ("words", "count", "wait", "message"),
    [
        (("4m",), 1, True, "--end-when-idle 4m: allowed: 5m or longer"),
        (("30m",), 2, True, "--end-when-idle 30m: allowed with one node; --count is 2"),
        (("30m",), 1, False, "--end-when-idle 30m: not allowed with --no-wait"),
        (("30m", "me@host:there"), 1, True, "--results-to me@host:there: needs --results-key; give both or neither"),
        (("30m", "there", "KEY"), 1, True, "--results-to there: allowed: USER@HOST:PATH"),
        (("30m", "me@host:a; reboot", "KEY"), 1, True, "allowed: USER@HOST:PATH"),
        (("30m", "-oProxyCommand=x@host:a", "KEY"), 1, True, "allowed: USER@HOST:PATH"),
        ((None, "me@host:there", "KEY"), 1, True, "allowed with --end-when-idle only"),
        (("soon",), 1, True, "soon"),
    ],
)
def test_a_wrong_option_is_reported_in_one_line(words, count, wait, message, key):
    given = [key if word == "KEY" else word for word in words]
    with pytest.raises((InputError, BadTime), match=message.replace("(", r"\(")):
        EndWhenIdleOptions(*given).parse(count, wait)


def test_a_missing_ssh_key_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        EndWhenIdleOptions("30m", "me@host:there", tmp_path / "missing").parse(1)
