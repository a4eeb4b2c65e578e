"""The speed of a host: which table it changes, and what `testbed calibrate --host` writes. Fake: the GPU."""

import functools
import json

import pytest

from experiments.cli.app import main
from experiments.prediction.times import calibrate as calibration
from experiments.prediction.times import host, step
from experiments.prediction.times.operations import canonical_key, parse
from experiments.prediction.times.phase import HOST_FACTORS, RecordedPhase, phase_time
from experiments.prediction.times.replay import NotReplayable
from experiments.prediction.times.table import TABLES, HostFactors, Machine, OperationTime, Table
from experiments.suites.cards import card_named

REFERENCE = Table.read(host.REFERENCE_TABLE)
MACHINE = Machine(card="h200_141gb", gpu="NVIDIA H200", host="a host", torch="2.11", command="test", date="2026-12-01")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Use an empty cache folder, and read tables and measured hosts again."""
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path))
    for cached in (step.tables, host.with_measured_host):
        cached.cache_clear()
    yield
    for cached in (step.tables, host.with_measured_host):
        cached.cache_clear()


@functools.cache
def shared_times() -> dict[str, OperationTime]:
    """Return the times of the sampled operations in the reference table."""
    known = {canonical_key(key): times for key, times in REFERENCE.measured.items()}
    return {key: known[canonical_key(key)] for key in host.sample_keys()}


def store_sample(slowness: float, card: str = "h200_141gb") -> None:
    """Store the measurement of a host that needs ``slowness`` times as long as the reference host."""
    path = host.host_sample_path(card)
    path.parent.mkdir(parents=True)
    lines = [MACHINE.model_copy(update={"card": card}).model_dump()]
    for key, times in shared_times().items():
        lines.append({"key": key, "device_s": times.device_s, "host_s": slowness * times.host_s})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def host_s(card: str) -> float:
    """Return the seconds of the host for a forward pass with matrix products on a card."""
    keys = [key for key in REFERENCE.measured if key.startswith('["aten::mm.default"')][:5]
    time = phase_time(RecordedPhase("forward", 0, dict.fromkeys(keys, 3)), step.table_for_card(card), card_named(card))
    assert time.host_work["layers"] * HOST_FACTORS["layers"] > 0
    return time.host_s


def test_without_a_measurement_the_host_is_that_of_the_table():
    assert step.table_for_card("h200_141gb").host == HostFactors()
    assert step.table_for_card("h100_80gb").host.operations == 1.0
    assert step.table_for_card("h100_80gb").host.other == pytest.approx(
        host.host_ratio(Table.read(TABLES / "h100_80gb.jsonl.gz").measured, REFERENCE.measured)
    )


def test_a_measured_host_changes_all_work_of_the_host_on_cards_with_its_chip():
    before = {card: host_s(card) for card in ("h200_141gb", "h100_80gb", "a100_80gb")}
    store_sample(slowness=1.3)
    step.tables.cache_clear()
    assert host_s("h200_141gb") == pytest.approx(1.3 * before["h200_141gb"])
    assert host_s("a100_80gb") == pytest.approx(before["a100_80gb"])
    assert step.table_for_card("h200_141gb").host.is_measured


def test_a_host_that_was_measured_on_another_card_replaces_the_host_of_the_scaled_table():
    store_sample(slowness=1.3, card="a100_80gb")
    found = step.table_for_card("a100_80gb").host
    own_ratio = step.table_for_card("h100_80gb").host.other
    assert found.operations == pytest.approx(1.3 / own_ratio, rel=0.1)
    assert found.other == pytest.approx(found.operations * own_ratio)
    assert not step.table_for_card("h100_80gb").host.is_measured


def test_the_sample_is_the_same_each_time_and_has_no_operation_that_can_break_the_gpu():
    keys = host.sample_keys()
    assert host.SAMPLE <= len(keys) < 1.2 * host.SAMPLE
    assert keys == host.sample_keys()
    assert {parse(key).family for key in keys} <= {*host.SAMPLED_FAMILIES}


@pytest.mark.parametrize("content", ["", "[", "{}\n", "\udcff", '{"card": "no_card"}\n', "first\n", "few\n"])
def test_an_unusable_measurement_is_ignored_with_a_warning(content, capsys):
    path = host.host_sample_path("h200_141gb")
    path.parent.mkdir(parents=True)
    if content == "few\n":
        lines = [MACHINE.model_dump(), *({"key": key, "host_s": 1.0, "device_s": 1.0} for key in [*shared_times()][:3])]
        content = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert step.table_for_card("h200_141gb").host == HostFactors()
    assert f"{path}: ignored" in capsys.readouterr().err


@pytest.fixture
def fake_gpu(monkeypatch):
    """A fake GPU of a host that is twice as slow as the reference host."""
    times = {repr(parse(key)): times for key, times in shared_times().items()}

    def measure(operation) -> OperationTime:
        known = times.get(repr(operation))
        if known is None:
            raise NotReplayable("not in the table")
        return OperationTime(known.device_s, 2 * known.host_s)

    monkeypatch.setattr(calibration, "measure", measure)
    monkeypatch.setattr(calibration, "this_machine", lambda command: MACHINE)
    monkeypatch.setattr(calibration, "_require_working_gpu", lambda key: None)


def test_calibrate_host_measures_the_sample_and_replaces_an_earlier_measurement(fake_gpu, capsys):
    store_sample(slowness=1.3)
    assert main(["calibrate", "--host"]) == 0
    assert "this host needs 2.00 times as long" in capsys.readouterr().out
    assert step.table_for_card("h200_141gb").host.other == pytest.approx(2.0)


def test_an_interrupted_measurement_keeps_the_earlier_one(fake_gpu, monkeypatch):
    store_sample(slowness=1.3)

    def interrupt(operation) -> OperationTime:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "measure", interrupt)
    assert main(["calibrate", "--host"]) != 0
    assert step.table_for_card("h200_141gb").host.other == pytest.approx(1.3)


def test_a_file_that_cannot_be_written_is_an_error_that_names_it(fake_gpu, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["calibrate", "--host", "--out", str(tmp_path / "file" / "host.jsonl")]) == 2
    assert "host.jsonl: cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["single_gpu_blip2", "--host"], "--host measures no suite"),
        (["--host", "--out", "kept.jsonl"], "--out kept.jsonl: allowed with --host: a new file"),
        (["--host", "--out", "new.jsonl.gz"], "--out new.jsonl.gz: allowed with --host: a new file"),
    ],
)
def test_bad_words_beside_host_are_an_error_that_loses_nothing(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept.jsonl").write_text("kept")
    assert main(["calibrate", *words]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "kept.jsonl").read_text() == "kept"
