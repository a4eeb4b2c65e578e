"""Test `testbed blame` with tiny packages, whose values replace the predictions."""

import json

import pytest

from experiments.blame import observe as module
from experiments.cli.app import main
from tests.support.results.fake_index import fake_observation, values, wheel

TARGET = "single_gpu_blip2/xxl-sgd"


@pytest.fixture
def good_and_bad(tmp_path, monkeypatch):
    """Options with two environments of three packages, the second of which changes the measured value."""
    index = tmp_path / "index"
    index.mkdir()
    names = ("pack1", "pack2", "pack3")
    for name in names:
        wheel(index, name, "1.0")
        wheel(index, name, "2.0", "2" if name == "pack2" else "0")
    for version, file in (("1.0", "old.txt"), ("2.0", "new.txt")):
        (tmp_path / file).write_text("".join(f"{name}=={version}\n" for name in names))
    monkeypatch.setenv("UV_FIND_LINKS", str(index))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    return ["--good", str(tmp_path / "old.txt"), "--bad", str(tmp_path / "new.txt")]


@pytest.fixture
def observed_environments(monkeypatch):
    """The environments in which rows were observed."""
    names: list[str] = []

    def predicted(request, environment):
        names.append(environment.name)
        return fake_observation(10 + sum(values(environment).values()))

    monkeypatch.setattr(module, "_predict", predicted)
    return names


def test_the_output_names_package_versions_and_steps(good_and_bad, observed_environments, capsys):
    assert main(["blame", TARGET, *good_and_bad]) == 0
    out, err = capsys.readouterr()
    assert "pack2 1.0 → 2.0 changed the result" in out
    assert "packages that differ: 3" in err
    assert "as with --bad" in err


def test_the_package_that_changed_the_status_of_a_claim_is_found(good_and_bad, capsys, monkeypatch):
    def predicted(request, environment):
        status = "fail" if sum(values(environment).values()) else "pass"
        return fake_observation(10.0).model_copy(update={"statuses": {"claim/lora-fits-easily": status}})

    monkeypatch.setattr(module, "_predict", predicted)
    assert main(["blame", "single_gpu_blip2/lora-fits-easily", *good_and_bad]) == 0
    assert "pack2 1.0 → 2.0 changed the result" in capsys.readouterr().out


def test_a_repeated_command_uses_the_stored_observations(good_and_bad, observed_environments, capsys):
    main(["blame", TARGET, *good_and_bad])
    once = list(observed_environments)
    assert len(set(once)) == len(once)
    assert main(["blame", TARGET, *good_and_bad, "--json"]) == 0
    assert observed_environments == once
    out = capsys.readouterr().out
    found = json.loads(out[out.index("{") :])
    assert [one["package"] for one in found["culprits"]] == ["pack2"]


def test_observations_before_ctrl_c_are_stored(good_and_bad, observed_environments, capsys, monkeypatch):
    whole, stopped = module._predict, iter([False, False, True])

    def interrupted(*words):
        if next(stopped):
            raise KeyboardInterrupt
        return whole(*words)

    monkeypatch.setattr(module, "_predict", interrupted)
    assert main(["blame", TARGET, *good_and_bad]) == 130
    monkeypatch.setattr(module, "_predict", whole)
    assert main(["blame", TARGET, *good_and_bad]) == 0
    assert len(set(observed_environments)) == len(observed_environments)


def test_a_missing_gpu_or_an_unknown_name_is_reported_in_one_line(good_and_bad, capsys):
    assert main(["blame", "single_gpu_blip2/nosuch", *good_and_bad]) == 2
    assert "unknown row or statement 'nosuch'" in capsys.readouterr().err
    assert main(["blame", TARGET, *good_and_bad, "--by", "gpu"]) == 2
    assert "this machine has no GPU" in capsys.readouterr().err
