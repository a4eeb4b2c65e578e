"""The lists of versions that images are built from."""

import pytest

from provision.configure.build_context import PROJECT

CONTAINERS = PROJECT / "containers"


def pinned_names(pins: str) -> set[str]:
    lines = (CONTAINERS / pins).read_text().splitlines()
    return {line.partition("==")[0] for line in lines if not line.startswith("#")}


@pytest.mark.parametrize("pins", ["current.txt", "as-taught.txt"])
def test_the_list_of_jupyter_repeats_no_package_of_the_main_list(pins: str) -> None:
    assert pinned_names("jupyter.txt")
    assert not pinned_names("jupyter.txt") & pinned_names(pins)
