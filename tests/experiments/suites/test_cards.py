import re

import pytest

from experiments.errors import InputError
from experiments.suites.cards import card_named, card_of_device, cards

DEVICES = {
    "NVIDIA A100-SXM4-80GB": "a100_80gb",
    "NVIDIA A100 80GB PCIe": "a100_80gb",
    "NVIDIA A100-PCIE-40GB": "a100_40gb",
    "NVIDIA A100-SXM4-40GB": "a100_40gb",
    "A100-SXM4-40GB": "a100_40gb",
    "NVIDIA H100": "h100_94gb",
    "NVIDIA H100 NVL": "h100_94gb",
    "NVIDIA H100 80GB HBM3": None,
    "NVIDIA H100 PCIe": None,
    "NVIDIA H200": "h200_141gb",
    "NVIDIA GH200 120GB": None,
    "Tesla V100-SXM2-32GB": "v100_32gb",
    "Tesla V100-PCIE-32GB": "v100_32gb",
    "Tesla V100-SXM2-16GB": None,
    "AMD Instinct MI250X": "mi250x_gcd_64gb",
    "AMD Instinct MI300X": None,
    "NVIDIA A30": None,
}


@pytest.mark.parametrize(("device", "card"), DEVICES.items())
def test_a_device_name_belongs_to_its_card_and_no_other(device, card):
    assert card_of_device(device) == card
    assert sum(bool(re.search(facts.matches, device)) for facts in cards().values()) == (card is not None)


@pytest.mark.parametrize("name", cards())
def test_every_value_of_a_card_has_a_source(name):
    assert {"memory", "context", "peak", "bandwidth", "compute_capability"} <= set(cards()[name].sources)


@pytest.mark.parametrize("name", cards())
def test_a_card_named_for_its_memory_has_about_that_much(name):
    sold_gb = int(re.search(r"(\d+)gb$", name)[1])
    assert 0.97 * sold_gb < card_named(name).memory_gib <= sold_gb


def test_the_allocator_may_take_what_the_context_leaves():
    card = card_named("a100_80gb")
    assert card.usable_gib == pytest.approx(card.memory_gib - card.context_gib)


def test_a_card_without_bfloat16_in_hardware_has_no_peak_for_it():
    assert "bf16" not in card_named("v100_32gb").peak_tflops


def test_an_unknown_card_is_refused_with_those_there_are():
    with pytest.raises(InputError) as refused:
        card_named("a100", "lab.yaml")
    allowed = f"lab.yaml: unknown card 'a100'; allowed: {', '.join(cards())}"
    assert str(refused.value) == f"{allowed}; did you mean a100_80gb or a100_40gb?"
