import hashlib
import json

import pytest
from pydantic import ValidationError

from experiments.suites.models import Model, models
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import suite_named
from tests.support.results.in_memory import run
from tests.support.results.in_memory import suite as made_suite


def test_a_fingerprint_depends_on_all_settings():
    suite = made_suite()
    spec = run().spec(suite, "a")
    assert spec.fingerprint == run(run_id="another").spec(suite, "a").fingerprint
    others = [
        run(size="tiny").spec(suite, "a"),
        run(input="with-image").spec(suite, "a"),
        spec.model_copy(update={"settings": spec.settings.model_copy(update={"seed": 7})}),
    ]
    assert len({spec.fingerprint, *(other.fingerprint for other in others)}) == 4


WHOLE = {"family": "transformers", "architecture": {"model_type": "llama", "hidden_size": 64}}


def data_with_own_model(**changes):
    """Return the spec of row a as JSON data, with a model that is not in models.yaml."""
    data = run().spec(made_suite(), "a").model_dump(mode="json")
    data["settings"]["model"] = "nobody/ever-named-it"
    return data | changes


def test_a_row_may_define_its_own_model():
    spec = RowSpec.model_validate(data_with_own_model(model=WHOLE))
    assert spec.base_model == Model.model_validate(WHOLE)
    assert RowSpec.model_validate_json(spec.model_dump_json()) == spec
    named = run().spec(made_suite(), "a")
    assert named.base_model is models()[named.settings.model]


def test_the_error_for_an_unknown_model_lists_the_known_models():
    with pytest.raises(ValidationError, match=r"row 'a': unknown model 'nobody/ever-named-it'; allowed: blip2"):
        RowSpec.model_validate(data_with_own_model())


LATER = (
    "accelerator",
    "prompt_length",
    "optimizer_in_backward",
    "activation_offload",
    "chunked_loss",
    "fused_optimizer",
    "packing",
    "compile",
)
"""The settings that earlier versions did not have."""


def test_a_fingerprint_depends_on_the_row_s_own_model_if_it_has_one():
    spec = run().spec(made_suite(), "a")
    before = spec.model_dump(mode="json")
    del before["model"], before["steady_s"]
    for name in LATER:
        del before["settings"][name]
    assert spec.fingerprint == hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()
    wider = WHOLE | {"architecture": {"model_type": "llama", "hidden_size": 128}}
    given = [RowSpec.model_validate(data_with_own_model(model=model)) for model in (WHOLE, wider)]
    assert len({spec.fingerprint, *(other.fingerprint for other in given)}) == 3


def test_a_model_that_does_not_use_a_later_setting_keeps_its_fingerprint():
    spec = RowSpec.model_validate(data_with_own_model(model=WHOLE))
    before = spec.model_dump(mode="json")
    del before["steady_s"], before["model"]["vision_layers"]
    for name in LATER:
        del before["settings"][name]
    assert spec.fingerprint == hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()
    fewer = RowSpec.model_validate(data_with_own_model(model=WHOLE | {"vision_layers": 2}))
    assert fewer.fingerprint != spec.fingerprint


def test_the_number_of_steps_measured_after_the_warm_up_does_not_change_the_fingerprint():
    data = run().spec(made_suite(), "a").model_dump(mode="json")
    longer = data | {"steady_s": 3.0}
    assert RowSpec.model_validate(longer).fingerprint == RowSpec.model_validate(data).fingerprint


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            {"family": "transformers", "architecture": {"hidden_size": 64}},
            "the key 'model_type' of config.json is missing",
        ),
        ({"family": "llama", "architecture": {}}, "a model of family llama needs parameters and source"),
    ],
)
def test_a_model_without_the_keys_that_its_family_needs_is_rejected(model, words):
    with pytest.raises(ValidationError, match=words):
        Model.model_validate(model)


@pytest.mark.parametrize(
    ("row", "changes", "steady_s"),
    [
        ("7b-1gpu", {}, 3.0),
        ("7b-4gpu-ddp", {}, 3.0),
        ("7b-1gpu-acc4", {}, 0.0),
        ("7b-1gpu", {"length": "as-taught"}, 0.0),
        ("7b-1gpu", {"size": "tiny"}, 0.0),
    ],
)
def test_a_row_with_a_statement_on_utilization_runs_long_enough_to_measure_it(row, changes, steady_s):
    suite = suite_named("multi_gpu_litgpt")
    given = run().model_copy(update={"card": "a100_80gb", "size": "full", "length": "verdict"} | changes)
    assert given.spec(suite, row).steady_s == steady_s
