"""The search for the package that causes a change. Environments are real, with tiny packages from a fake index."""

import subprocess

import pytest

from experiments.blame.blame import blame
from experiments.blame.environment import Environment, create_environment
from experiments.errors import InputError
from tests.support.results.fake_index import fake_observation, pins, values, wheel

NAMES = [f"pack{number:02}" for number in range(14)]
OLD, NEW = dict.fromkeys(NAMES, "1.0"), dict.fromkeys(NAMES, "2.0")


@pytest.fixture
def package_index(tmp_path, monkeypatch):
    """A package index in a folder: two versions of each package, with equal code. No other index can be reached."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in NAMES:
        for version in ("1.0", "2.0"):
            wheel(folder, name, version)
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    return folder


class Observer:
    """Observes the sum of all packages' values as the peak of a row; counts its observations."""

    def __init__(self, observe=lambda values: fake_observation(10 + sum(values.values()))):
        self.count, self._observe = 0, observe

    def __call__(self, method: str, environment: Environment):
        self.count += 1
        return self._observe(values(environment))


def run_blame(observe, good=OLD, bad=NEW, messages=lambda line: None):
    return blame(pins(good), pins(bad), observe, ["prediction"], None, messages)


def test_the_package_that_changed_a_value_is_found_in_six_steps(package_index):
    wheel(
        package_index,
        "pack09",
        "2.0",
        "1.5",
        log="# Changes\n\n## 2.0\n\n- Keeps a second copy of the weights.\n\n## 1.0\n",
    )
    lines: list[str] = []
    found = run_blame(Observer(), messages=lines.append)
    (culprit,) = found.culprits
    assert (culprit.package, culprit.before, culprit.now) == ("pack09", "1.0", "2.0")
    assert culprit.change_log == "Keeps a second copy of the weights."
    assert (found.packages_changed, found.differs, found.sure) == (
        14,
        "row: peak memory 10 GiB → 11.5 GiB (+15 %)",
        True,
    )
    assert len(found.steps) <= 6
    assert any("step 1 (at most" in line for line in lines)


def test_a_package_that_makes_a_row_fail_is_found(package_index):
    wheel(package_index, "pack03", "2.0", "float('nan')")
    observe = Observer(lambda values: fake_observation(0, "error") if values["pack03"] != 0 else fake_observation(10))
    found = run_blame(observe)
    assert [one.package for one in found.culprits] == ["pack03"]
    assert found.differs == "row: outcome fits → error"


def test_two_packages_that_change_a_value_only_together_are_both_named(package_index):
    for name in ("pack02", "pack11"):
        wheel(package_index, name, "2.0", "1")
    observe = Observer(lambda values: fake_observation(10 + values["pack02"] * values["pack11"]))
    found = run_blame(observe)
    assert [one.package for one in found.culprits] == ["pack02", "pack11"]


def test_packages_that_require_each_other_are_changed_together(package_index):
    wheel(package_index, "pack04", "1.0", needs=["pack05<2"])
    wheel(package_index, "pack04", "2.0", "1", needs=["pack05>=2"])
    asked: list[dict[str, str]] = []

    def observe(method, environment):
        asked.append({name: environment.pins[name].version for name in ("pack04", "pack05")})
        return fake_observation(10 + sum(values(environment).values()))

    found = run_blame(observe)
    assert [one.package for one in found.culprits] == ["pack04", "pack05"]
    assert all(versions["pack04"] == versions["pack05"] for versions in asked)


def test_only_the_package_whose_requirement_changes_the_value_is_named(package_index):
    wheel(package_index, "pack04", "2.0", "1", needs=["pack05>=2"])
    found = run_blame(Observer())
    assert [one.package for one in found.culprits] == ["pack04"]
    assert all("pack05" in step.updated for step in found.steps if "pack04" in step.updated)


def test_a_package_that_only_one_environment_has_is_found(package_index):
    wheel(package_index, "extra", "1.0", "3")
    found = run_blame(Observer(), bad={**NEW, "extra": "1.0"})
    assert [(one.package, one.before, one.now) for one in found.culprits] == [("extra", "", "1.0")]
    found = run_blame(Observer(), good={**OLD, "extra": "1.0"})
    assert [(one.package, one.before, one.now) for one in found.culprits] == [("extra", "1.0", "")]


def test_the_search_continues_if_an_environment_of_a_step_cannot_be_tested(package_index):
    wheel(package_index, "pack09", "2.0", "1")

    def observe(method, environment):
        versions = {name: environment.pins[name].version for name in ("pack06", "pack07")}
        if versions == {"pack06": "2.0", "pack07": "1.0"}:
            raise InputError("cannot be imported")
        return fake_observation(10 + sum(values(environment).values()))

    found = run_blame(observe)
    assert [one.package for one in found.culprits] == ["pack09"]
    assert any("cannot be imported" in step.value for step in found.steps)


def test_environments_are_created_once(package_index, monkeypatch):
    wheel(package_index, "pack09", "2.0", "1")
    run_blame(Observer())
    monkeypatch.setattr(subprocess, "run", None)
    environment = create_environment(pins(OLD))
    assert environment.python.exists()


def test_a_new_environment_reuses_compiled_files_whose_source_is_the_same_file(package_index, monkeypatch):
    old = create_environment(pins({"pack00": "1.0", "pack01": "1.0"}))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    subprocess.run([old.python, "-c", "import pack00, pack01"], check=True)
    new = create_environment(pins({"pack00": "1.0", "pack01": "2.0"}), [old])
    (compiled,) = new.site_packages.glob("__pycache__/*.pyc")
    assert compiled.name.startswith("pack00.")
    assert compiled.samefile(old.site_packages / "__pycache__" / compiled.name)


def test_dependencies_of_pytorch_are_installed_and_pinned_versions_stay(package_index):
    wheel(package_index, "torch", "2.0", needs=["fake-cuda==12.4", "pack00>=2"])
    wheel(package_index, "fake_cuda", "12.4")
    found = create_environment(pins({"torch": "2.0", "pack00": "1.0"})).packages()
    assert {name: package.version for name, package in found.items()} == {
        "torch": "2.0",
        "pack00": "1.0",
        "fake-cuda": "12.4",
    }


def test_an_interrupted_environment_is_created_again(package_index):
    folder = create_environment(pins(OLD)).folder
    (folder / ".made").unlink()
    (folder / "bin" / "python").unlink()
    assert create_environment(pins(OLD)).python.exists()


def test_environments_with_the_same_packages_or_values_are_an_error_with_the_reason(package_index):
    with pytest.raises(InputError, match="prediction: nothing differs"):
        run_blame(Observer())
    with pytest.raises(InputError, match="the same versions"):
        run_blame(Observer(), bad=OLD)
    with pytest.raises(InputError, match="--bad: cannot be installed"):
        run_blame(Observer(), bad={**NEW, "pack00": "9.9"})


def test_the_next_kind_of_observation_is_tried_if_one_shows_no_difference(package_index):
    wheel(package_index, "pack09", "2.0", "1")
    observed: list[str] = []

    def observe(method, environment):
        observed.append(method)
        return fake_observation(10 + (sum(values(environment).values()) if method == "miniature" else 0))

    found = blame(pins(OLD), pins(NEW), observe, ["prediction", "miniature"], None, lambda line: None)
    assert found.method == "miniature"
    assert observed[:4] == ["prediction", "prediction", "miniature", "miniature"]
