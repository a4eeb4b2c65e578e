"""Suites of the user, which TESTBED_SUITES adds."""

import shutil

import pytest

from experiments.errors import InputError
from experiments.suites.suite import (
    LABS,
    SUITES_VARIABLE,
    TEMPLATE_FILE,
    suite_named,
    suite_names,
    suites_in_group,
    user_suite_file,
    user_suites,
)


@pytest.fixture
def suite_folder(tmp_path, monkeypatch):
    """Create a folder with a suite that TESTBED_SUITES names."""
    shutil.copy(TEMPLATE_FILE, tmp_path / "my_lab.yaml")
    monkeypatch.setenv(SUITES_VARIABLE, str(tmp_path))
    yield tmp_path
    suite_named.cache_clear()


def test_a_suite_in_a_folder_is_used_like_those_of_the_package(suite_folder):
    assert user_suites() == ["my_lab"]
    assert {path.stem for path in LABS.glob("*.yaml")} | {"my_lab"} == set(suite_names())
    assert suite_named("my_lab") in suites_in_group("single")
    assert user_suite_file("my_lab") == suite_folder / "my_lab.yaml"


def test_user_suites_may_be_given_as_files_and_as_folders(suite_folder, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other") / "second.yaml"
    other.write_text(TEMPLATE_FILE.read_text().replace("suite: my_lab", "suite: second"))
    monkeypatch.setenv(SUITES_VARIABLE, f"{other}:{suite_folder}")
    assert user_suites() == ["second", "my_lab"]
    assert suite_named("second").suite == "second"


def test_a_user_suite_cannot_have_the_name_of_a_built_in_suite(suite_folder, monkeypatch):
    name = next(LABS.glob("*.yaml")).name
    shutil.copy(LABS / name, suite_folder / name)
    with pytest.raises(InputError, match=rf"{name}: .*labs/{name} also defines the suite .*; rename"):
        suite_names()


@pytest.mark.parametrize("place", ["absent", "absent.yaml", "empty"])
def test_a_path_without_a_suite_is_rejected(tmp_path, monkeypatch, place):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv(SUITES_VARIABLE, str(tmp_path / place))
    with pytest.raises(
        InputError, match=rf"{place}: no suite file found; allowed: a file that ends in \.yaml, or a folder"
    ):
        user_suites()


def test_a_file_in_place_of_a_suite_name_is_rejected_and_the_option_for_files_is_named():
    with pytest.raises(InputError, match=r"unknown suite 'a/lab\.yaml'; .* --suite-file a/lab\.yaml$"):
        suite_named("a/lab.yaml")
