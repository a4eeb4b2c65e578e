"""The versions of packages with which the phantom device can be loaded."""

import sys
import tomllib

import pytest

from experiments.errors import InputError
from experiments.prediction.phantom import library
from experiments.system.files import CODE_FOLDER


@pytest.mark.parametrize(
    ("package", "version", "message"),
    [
        ("torch", "2.8.0+cu128", "predictions need PyTorch 2.9 or newer, but 2.8.0+cu128 is installed"),
        ("torch", "1.13.1", "predictions need PyTorch 2.9 or newer, but 1.13.1 is installed"),
        ("transformers", "4.57.1", "predictions need Transformers 5.0 or newer, but 4.57.1 is installed"),
    ],
)
def test_an_old_package_is_refused_in_one_line_before_anything_is_compiled(
    monkeypatch, tmp_path, package, version, message
):
    monkeypatch.setattr(library, "versions", lambda: {package: version})
    monkeypatch.setattr(library, "compiled_library", lambda *_: pytest.fail("compiled"))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(InputError) as refused:
        library.load(tmp_path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("version", ["2.9.0", "2.10.0+cpu", "2.14.1", "3.0.0a0+git1"])
def test_the_tested_versions_and_newer_ones_are_accepted(version):
    library.reject_old_packages({"torch": version, "transformers": "5.0.0rc1"})


def test_the_requirements_of_the_project_state_the_oldest_version_of_pytorch():
    requirements = tomllib.loads((CODE_FOLDER / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    _, major, minor = library.OLDEST_VERSIONS["torch"]
    assert f"torch>={major}.{minor}" in requirements["train"]
