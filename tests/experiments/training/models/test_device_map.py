"""A model over several GPUs: where its parts go, told without a GPU, and that each comes with its weights."""

import pytest
import torch

from experiments.errors import InputError
from experiments.suites.models import models
from experiments.training.models import device_map
from experiments.training.models.weights import fill_randomly, load_pretrained, meta_model, place_of
from tests.support.results import GPU, STAND_IN
from tests.support.trainings import GIB, GPT_NEO, LLAMA, LORA, NF4, spec

CPU = torch.device("cpu")


def size_of(model, parts):
    return sum(2 * one.numel() for part in parts for one in model.get_submodule(part).parameters())


@pytest.mark.parametrize("name", [GPT_NEO, LLAMA])
def test_a_model_that_fits_no_gpu_alone_is_shared_out_evenly(name):
    model = meta_model(models()[name], "full")
    whole = size_of(model, [""])
    places = device_map.placed(model, torch.bfloat16, dict.fromkeys(range(3), int(0.6 * whole)))
    shares = [size_of(model, [part for part, place in places.items() if place == number]) for number in range(3)]
    assert sum(shares) >= whole
    assert max(shares) < 0.5 * whole
    assert min(shares) > 0.2 * whole


def test_weights_without_room_are_out_of_memory():
    model = meta_model(models()[GPT_NEO], "full")
    with pytest.raises(
        torch.OutOfMemoryError, match=r"^the weights do not fit 1, 1 GiB of 2 GPUs; left: transformer.h"
    ):
        device_map.placed(model, torch.bfloat16, {0: GIB, 1: GIB})


def test_a_tenth_of_the_cap_is_left_to_the_model_or_of_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (10 * GIB + number, 80 * GIB))
    assert device_map.room(1, STAND_IN) == int(0.9 * STAND_IN.cap_gib * GIB)
    assert device_map.room(1, GPU) == int(0.9 * (10 * GIB + 1))


def test_a_part_goes_where_the_smallest_part_that_has_it_goes():
    places = {"": 0, "transformer.h": 1, "transformer.h.3": 2}
    assert [place_of(name, places) for name in ("head.weight", "transformer.h.2.a", "transformer.h.3.a.b")] == [0, 1, 2]


def parts_of(model):
    return {name: "cpu" for name, _ in model.named_children()}


def test_parts_get_random_weights_and_shared_ones_stay_shared():
    model = meta_model(models()[GPT_NEO], "tiny")
    fill_randomly(model, torch.bfloat16, parts_of(model))
    assert {(one.device, one.dtype) for one in model.parameters()} == {(CPU, torch.bfloat16)}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_published_weights_are_loaded_by_parts(tmp_path):
    model = meta_model(models()[GPT_NEO], "tiny")
    fill_randomly(model, torch.float32, {"": CPU})
    model.save_pretrained(tmp_path)
    facts = models()[GPT_NEO].model_copy(update={"hub": str(tmp_path)})
    loaded = load_pretrained(facts, "tiny", torch.float32, None, parts_of(model))
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_a_spread_model_samples(monkeypatch):
    """The GPUs are stubs: every part goes to the processor."""
    asked = {}
    monkeypatch.setattr(device_map, "room", lambda number, device: 100 + number)
    monkeypatch.setattr(device_map, "placed", lambda model, dtype, rooms: asked.update(rooms) or parts_of(model))
    row = spec(engine="hf_trainer", model=GPT_NEO, task="generate", devices=2, max_length=16)
    model = device_map.build_spread(row, STAND_IN)
    assert asked == {0: 100, 1: 101}
    assert model(torch.arange(8)[None]).logits.shape == (1, 8, 256)


def test_4_bit_weights_are_not_spread():
    row = spec(engine="hf_trainer", model=GPT_NEO, devices=2, task="generate", lora=LORA, quantization=NF4)
    with pytest.raises(InputError, match=r"^quantization: a model over several GPUs is not quantized; allowed: on one"):
        device_map.build_spread(row, STAND_IN)
