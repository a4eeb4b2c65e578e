"""External dependencies are pinned: packages by hash, GitHub actions by commit."""

import re

import pytest
import yaml

from experiments.system.files import CODE_FOLDER

LOCKS = sorted((CODE_FOLDER / "containers" / "locks").glob("*.txt"))
WORKFLOWS = sorted((CODE_FOLDER / ".github" / "workflows").glob("*.yml"))
PINNED_ACTION = re.compile(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_package_of_a_lock_has_a_hash(lock):
    entries = re.sub(r"\\\n\s*", "", lock.read_text()).splitlines()
    packages = [entry for entry in entries if entry.strip() and not entry.startswith("#")]
    assert packages
    assert not [entry for entry in packages if not re.match(r"\S+==\S+ .*--hash=sha256:[0-9a-f]{64}", entry)]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit_and_keep_no_credentials(workflow):
    used = [line.strip(" -") for line in workflow.read_text().splitlines() if "uses:" in line]
    assert not [line for line in used if not PINNED_ACTION.fullmatch(line)]
    steps = [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]
    checkouts = [step for step in steps if step.get("uses", "").startswith("actions/checkout@")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_a_release_is_built_without_a_cache_that_a_branch_could_write():
    assert "actions/cache" not in (CODE_FOLDER / ".github" / "workflows" / "release.yml").read_text()
