"""External dependencies are pinned: packages by hash, GitHub actions by commit."""

import os
import re
import shutil
import subprocess

import pytest
import yaml

from experiments.system.files import CODE_FOLDER

LOCKS = sorted((CODE_FOLDER / "containers" / "locks").glob("*.txt"))
WORKFLOWS = sorted((CODE_FOLDER / ".github" / "workflows").glob("*.yml"))
PINNED_ACTION = re.compile(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_package_of_a_lock_file_has_a_hash(lock):
    entries = re.sub(r"\\\n\s*", "", lock.read_text()).splitlines()
    packages = [entry for entry in entries if entry.strip() and not entry.startswith("#")]
    assert packages
    assert not [entry for entry in packages if not re.match(r"\S+==\S+ .*--hash=sha256:[0-9a-f]{64}", entry)]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_github_actions_are_pinned_by_commit_and_keep_no_credentials(workflow):
    used = [line.strip(" -") for line in workflow.read_text().splitlines() if "uses:" in line]
    assert not [line for line in used if not PINNED_ACTION.fullmatch(line)]
    steps = [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]
    checkouts = [step for step in steps if step.get("uses", "").startswith("actions/checkout@")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_the_image_installs_packages_by_hash_only():
    recipe = re.sub(r"\\\n\s*", "", (CODE_FOLDER / "containers" / "Dockerfile").read_text())
    installs = re.findall(r"pip install ([^&\n]*)", recipe)
    own = [one for one in installs if "--editable ." in one]
    assert len(own) == 1
    assert "--no-index" in own[0]
    assert len(installs) == 3
    assert all("--require-hashes" in one for one in installs if one not in own)


def test_every_lock_file_whose_versions_can_be_raised_is_checked_for_vulnerabilities():
    (line,) = re.findall(r"^AUDITED_LISTS *:= (.*)$", (CODE_FOLDER / "Makefile").read_text(), re.MULTILINE)
    assert {lock.stem for lock in LOCKS} - set(line.split()) == {"as-taught", "openstack", "tempest"}
    steps = yaml.safe_load((CODE_FOLDER / ".github" / "workflows" / "audit.yml").read_text())["jobs"]["audit"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make audit", "make lint-ansible"]


def test_keys_of_package_repositories_are_checked_by_fingerprint_before_their_use():
    for tasks in (CODE_FOLDER / "ansible" / "roles").glob("*/tasks/*.yml"):
        text = tasks.read_text()
        if "get_url" in text:
            assert "fingerprint" in text or "checksum: sha" in text, tasks


def test_a_release_is_built_without_a_cache_that_a_branch_could_write():
    assert "actions/cache" not in (CODE_FOLDER / ".github" / "workflows" / "release.yml").read_text()


@pytest.mark.parametrize(
    "value", ["x; echo Y", "x$$(echo Y)", "x`echo Y`", "a|b", "a&b", "a>b", 'a" ; echo Y; "', "it's"]
)
@pytest.mark.parametrize("variable", ["suite", "row", "results", "start", "data"])
def test_make_rejects_variables_with_characters_that_the_shell_would_interpret(variable, value):
    done = subprocess.run(
        ["make", "-n", "list", f"{variable}={value}"], cwd=CODE_FOLDER, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"{variable} has a character that the shell would interpret" in done.stderr
    assert done.stdout == ""


def test_make_rejects_a_folder_with_a_space_and_names_it(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    shutil.copy(CODE_FOLDER / "Makefile", folder)
    home = os.environ | {"HOME": str(folder), "XDG_CACHE_HOME": ""}
    own_environment = {"cwd": folder, "env": os.environ}
    for settings in (own_environment, {"cwd": CODE_FOLDER, "env": home}):
        done = subprocess.run(["make", "-n", "help"], **settings, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"has a space: {folder}" in done.stderr


def test_make_accepts_values_with_spaces_and_options_in_quotes():
    words = ["row=xxl xxl-sgd", "card=a100_80gb", "results=my-runs", 'args=--notify "json://a?b&c"']
    done = subprocess.run(["make", "-n", "run-single", *words], cwd=CODE_FOLDER, capture_output=True, text=True)
    assert "--row xxl --row xxl-sgd --results my-runs" in done.stdout, done.stderr
