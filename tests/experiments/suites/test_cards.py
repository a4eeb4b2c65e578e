import re
from pathlib import Path

import pytest

from experiments.errors import InputError
from experiments.suites.cards import (
    IMAGE_CUDA,
    REFERENCE_CARD,
    card_named,
    card_notes,
    card_of_device,
    cards,
    parse_card_list,
    supported_card,
)

DOCKERFILE = Path(__file__).parents[3] / "containers" / "Dockerfile"
DEVICES = {
    ("NVIDIA A100-SXM4-80GB", 79.15): "a100_80gb",
    ("NVIDIA A100 80GB PCIe", 79.25): "a100_80gb",
    ("NVIDIA A100-PCIE-40GB", 39.39): "a100_40gb",
    ("NVIDIA A100-SXM4-40GB", 39.49): "a100_40gb",
    ("A100-SXM4-40GB", 39.5): "a100_40gb",
    ("NVIDIA A100", 39.5): "a100_40gb",
    ("NVIDIA A100", 79.1): "a100_80gb",
    ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 9.5): None,
    ("NVIDIA H100", 93.1): "h100_94gb",
    ("NVIDIA H100", 79.1): "h100_80gb",
    ("NVIDIA H100", 63.4): None,
    ("NVIDIA H100 NVL", 93.0): "h100_94gb",
    ("NVIDIA H100 NVL MIG 1g.12gb", 10.75): "h100_1g_12gb",
    ("NVIDIA H100L-1-12C MIG 1g.12gb", 10.75): "h100_1g_12gb",
    ("NVIDIA H100 80GB HBM3", 79.11): "h100_80gb",
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9.6): None,
    ("NVIDIA H100 PCIe", 79.11): "h100_pcie_80gb",
    ("NVIDIA H200", 139.8): "h200_141gb",
    ("NVIDIA GH200 120GB", 94.5): "gh200_96gb",
    ("NVIDIA GH200 480GB", 95.0): "gh200_96gb",
    ("NVIDIA GH200 144G HBM3e", 142.5): "gh200_144gb",
    ("Tesla V100-SXM2-32GB", 31.74): "v100_32gb",
    ("Tesla V100-PCIE-32GB", 31.75): "v100_32gb",
    ("Tesla V100-SXM2-16GB", 15.78): "v100_16gb",
    ("NVIDIA V100", 15.78): "v100_16gb",
    ("Tesla P100-PCIE-16GB", 15.9): "p100_16gb",
    ("Tesla P100-PCIE-12GB", 11.9): None,
    ("Tesla M40 24GB", 22.41): "m40_24gb",
    ("Tesla M40", 11.93): None,
    ("Tesla K80", 11.17): "k80_12gb",
    ("Tesla T4", 14.56): "t4_16gb",
    ("NVIDIA T4G", 14.75): None,
    ("Quadro RTX 6000", 23.65): "rtx6000_24gb",
    ("NVIDIA RTX 6000 Ada Generation", 44.43): "rtx6000_ada_48gb",
    ("NVIDIA RTX 6000 Ada Generation", 47.5): "rtx6000_ada_48gb",
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 94.97): "rtx_pro_6000_96gb",
    ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 94.97): "rtx_pro_6000_96gb",
    ("NVIDIA A10", 22.06): "a10_24gb",
    ("NVIDIA A10G", 22.19): "a10g_24gb",
    ("NVIDIA A30", 23.53): "a30_24gb",
    ("NVIDIA A40", 44.35): "a40_48gb",
    ("NVIDIA L4", 22.03): "l4_24gb",
    ("NVIDIA L40S", 44.42): "l40s_48gb",
    ("NVIDIA L40", 44.4): None,
    ("NVIDIA GeForce RTX 3090", 23.68): "rtx3090_24gb",
    ("NVIDIA GeForce RTX 3090 Ti", 23.68): None,
    ("NVIDIA GeForce RTX 4090", 23.52): "rtx4090_24gb",
    ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.6): None,
    ("NVIDIA GeForce RTX 5090", 31.36): "rtx5090_32gb",
    ("NVIDIA B200", 178.35): "b200_180gb",
    ("NVIDIA GB200", 184.0): None,
    ("AMD Instinct MI250X", 63.98): "mi250x_gcd_64gb",
    ("AMD Instinct MI250X/MI250", 63.98): "mi250x_gcd_64gb",
    ("AMD Instinct MI210", 63.98): "mi210_64gb",
    ("AMD Instinct MI100", 31.98): "mi100_32gb",
    ("AMD Instinct MI300X", 191.98): "mi300x_192gb",
}
PROFILES = {"h100_1g_12gb"}
"""Cards named by a profile of MIG, which counts memory that the instance does not have."""
IN_HARDWARE = {
    "k80_12gb": [], "m40_24gb": [], "p100_16gb": ["fp16"], "v100_32gb": ["fp16"], "t4_16gb": ["fp16"],
    "a100_80gb": ["bf16", "fp16"], "l4_24gb": ["bf16", "fp16"], "h100_80gb": ["bf16", "fp16"],
    "b200_180gb": ["bf16", "fp16"], "rtx5090_32gb": ["bf16", "fp16"], "mi100_32gb": ["bf16", "fp16"],
}  # fmt: skip
BUILDS = {
    "k80_12gb": "none", "m40_24gb": "CUDA 12.6", "p100_16gb": "CUDA 12.6", "v100_16gb": "CUDA 12.6",
    "t4_16gb": "CUDA 13", "a40_48gb": "CUDA 13", "l4_24gb": "CUDA 13", "h200_141gb": "CUDA 13", "b200_180gb": "CUDA 13",
    "rtx5090_32gb": "CUDA 13", "mi300x_192gb": "ROCm",
}  # fmt: skip


@pytest.mark.parametrize(("device", "card"), DEVICES.items(), ids=str)
def test_a_device_matches_its_card_and_no_other(device, card):
    assert card_of_device(*device) == card
    assert sum(facts.matches_device(*device) for facts in cards().values()) == (card is not None)


def test_every_card_is_recognized_by_the_name_of_its_device():
    assert {*DEVICES.values()} - {None} == {*cards()}


@pytest.mark.parametrize("name", ["NVIDIA H100", "NVIDIA H200", "NVIDIA A30"])
@pytest.mark.parametrize("unknown", [None, 0.0])
def test_a_device_with_unknown_memory_is_recognized_by_its_name(name, unknown):
    named = {"NVIDIA H100": "h100_94gb", "NVIDIA H200": "h200_141gb", "NVIDIA A30": "a30_24gb"}
    assert card_of_device(name, unknown) == named[name]


@pytest.mark.parametrize("name", cards())
def test_every_value_of_a_card_has_a_source(name):
    needed = {"memory", "context", "peak", "bandwidth", "compute_capability", "multiprocessors"}
    needed |= {"link"} if cards()[name].link_gb_s else set()
    assert needed <= set(cards()[name].sources)


@pytest.mark.parametrize("name", [name for name in cards() if name not in PROFILES])
def test_a_card_has_about_the_memory_that_its_name_states(name):
    sold_gb, card = int(re.search(r"(\d+)gb$", name)[1]), card_named(name)
    share = 0.97 * 15 / 16 if "ECC, which takes 1/16" in card.sources["memory"] else 0.97
    assert share * sold_gb < card.memory_gib <= sold_gb


def test_usable_memory_excludes_the_cuda_context():
    card = card_named("a100_80gb")
    assert card.usable_gib == pytest.approx(card.memory_gib - card.context_gib)


def test_a_card_without_bfloat16_in_hardware_has_no_peak_rate_for_it():
    assert "bf16" not in card_named("v100_32gb").peak_tflops


@pytest.mark.parametrize(("name", "types"), IN_HARDWARE.items())
def test_a_card_lists_the_16_bit_types_that_its_hardware_supports(name, types):
    assert card_named(name).types_16_bit == types


@pytest.mark.parametrize(("name", "build"), BUILDS.items())
def test_a_card_names_the_build_of_pytorch_for_its_generation(name, build):
    assert card_named(name).pytorch_build == build


def test_notes_name_the_cuda_version_of_the_container_image():
    assert re.search(r"^ARG BASE_IMAGE=\S+-cuda(\S+?)-", DOCKERFILE.read_text(), re.MULTILINE)[1] == IMAGE_CUDA


def test_notes_name_the_cards_that_the_container_image_cannot_use():
    lines = card_notes(["v100_32gb", "a100_80gb", "p100_16gb", "mi210_64gb", "24GiB"])
    assert [line.partition(":")[0] for line in lines] == ["v100_32gb, p100_16gb", "mi210_64gb", "24GiB"]
    assert f"PyTorch for CUDA {IMAGE_CUDA}; use PyTorch for CUDA 12.6" in lines[0]
    assert f"24.00 GiB; kernels and data types are assumed to be those of {REFERENCE_CARD}" in lines[2]


def test_the_error_for_an_unknown_card_lists_the_known_cards():
    with pytest.raises(InputError) as rejected:
        card_named("a100", "lab.yaml")
    allowed = f"lab.yaml: unknown card 'a100'; allowed: {', '.join(cards())}"
    assert str(rejected.value) == f"{allowed}; did you mean a100_80gb or a100_40gb?"


@pytest.mark.parametrize(
    ("text", "gib"), [("24GiB", 24), ("24GB", 24e9 / 2**30), ("11.5GiB", 11.5), ("24 gib", 24), ("1024GiB", 1024)]
)
def test_a_size_in_gib_names_a_card_with_that_memory(text, gib):
    card, like = card_named(text), card_named(REFERENCE_CARD)
    assert card.memory_gib == pytest.approx(gib)
    assert (card.compute_capability, card.types_16_bit) == (like.compute_capability, like.types_16_bit)
    assert all(source.startswith("assumed") for source in card.sources.values())
    assert card.memory_is_assumed
    assert parse_card_list(f"{text},a100_80gb") == [text, "a100_80gb"]
    assert card_of_device(card.name, gib) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5GiB", "--card 0.5GiB: allowed: more than 1.1 and at most 1024 GiB"),
        ("2000GiB", "--card 2000GiB: allowed: more than 1.1 and at most 1024 GiB"),
        ("24Gi", "--card: unknown card '24Gi'; allowed: a100_80gb"),
        ("-24GiB", "or a size such as 24GiB"),
        ("24", "or a size such as 24GiB"),
        ("", "or a size such as 24GiB"),
        ("k80_12gb", "--card k80_12gb: too old for PyTorch: compute capability 3.7; PyTorch 2.11 to 2.13 needs 5.0"),
    ],
)
def test_an_unknown_card_or_one_too_old_for_pytorch_is_rejected_in_one_line(text, message):
    for ask in (parse_card_list, lambda name: supported_card(name, "--card")):
        with pytest.raises(InputError) as rejected:
            ask(text)
        assert message in str(rejected.value)
        assert "\n" not in str(rejected.value)


def test_the_name_all_selects_every_card_that_pytorch_supports():
    assert set(cards()) - set(parse_card_list("all")) == {"k80_12gb"}


def test_the_memory_of_a_card_is_marked_as_reported_by_pytorch_or_as_assumed():
    assert not card_named("a100_80gb").memory_is_assumed
    assert card_named("l4_24gb").memory_is_assumed


def test_the_catalog_agrees_with_what_the_labs_state_about_cards():
    found = cards()
    assert {name: found[name].compute_capability for name in ("a100_80gb", "a30_24gb", "v100_32gb")} == {
        "a100_80gb": "8.0",
        "a30_24gb": "8.0",
        "v100_32gb": "7.0",
    }
    assert all("bf16" in found[name].peak_tflops for name in ("a100_80gb", "a30_24gb"))
    assert "bf16" not in found["v100_32gb"].peak_tflops  # emulated in software
    p100, v100 = found["p100_16gb"], found["v100_32gb"]
    assert p100.memory_gib < v100.memory_gib
    assert float(p100.compute_capability) < float(v100.compute_capability)
    for name, gigabytes in (("v100_32gb", 32), ("a100_40gb", 40), ("mi250x_gcd_64gb", 64)):
        assert found[name].memory_gib == pytest.approx(gigabytes, rel=0.05)
