"""All errors in the file of a suite are found at once, each with its line."""

import pytest

from experiments.errors import InputError
from experiments.suites.document import MAX_BYTES, read_document
from experiments.suites.mistakes import suite_and_mistakes
from experiments.suites.suite import TEMPLATE_FILE

GOOD = TEMPLATE_FILE.read_text()


@pytest.fixture
def mistakes(tmp_path):
    """Return the errors of the template after replacing some texts: the line and the text of each."""

    def found(*replaced, text=GOOD):
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "my_lab.yaml"
        path.write_text(text)
        suite, wrong = suite_and_mistakes(read_document(path), "my_lab")
        assert (suite is None) == bool(wrong)
        hints = {one: f"; did you mean {one.similar_name}?" if one.similar_name else "" for one in wrong}
        return {(text.splitlines()[one.line - 1].strip(), one.text + hints[one]) for one in wrong}

    return found


def test_the_template_has_no_errors(mistakes):
    assert mistakes() == set()


@pytest.mark.parametrize(
    ("old", "new", "line", "message", "suggestion"),
    [
        ("title: Fine", "titel: Fine", "titel: Fine-tune GPT-2", "unknown key 'titel'; allowed: ", "title"),
        ("[a100_80gb,", "[a100_80g,", "cards: [a100_80g,", "unknown card 'a100_80g'; allowed: ", "a100_80gb"),
        ("model: gpt2", "model: gpt3", "model: gpt3", "on a100_80gb: unknown model 'gpt3'; allowed: ", "gpt2"),
        ("{optimizer: sgd}", "{optimizer: sgdd}", "settings: {optimizer: sgdd}", "optimizer = 'sgdd': allowed", "sgd"),
        ("{optimizer: sgd}", "{optimizr: sgd}", "settings: {optimizr", "unknown key 'optimizr'", "optimizer"),
        (
            "batch_size: 8",
            "batch_size: none",
            "batch_size: none",
            "batch_size = 'none': allowed: a whole number above 0",
            "",
        ),
        ("  workers: 0\n", "", "common:", "row 'full' on a100_80gb: key 'workers' is missing", ""),
        ("row: sgd,", "row: sgdd,", "- {row: sgdd", "claim 'sgd-has-no-state': unknown row 'sgdd'", "sgd"),
        ("over_row: full", "over_row: ful", "- {row: lora", "unknown row 'ful'; allowed: full, sgd, lora", "full"),
        ("y: peak_gib", "y: peak_gb", "- {quantity: peak_gb", "row 'lora': expect.reference_values.0.qua", "peak_gib"),
        ("id: sgd\n", "id: sgd\n    variant_of: ful\n", "variant_of: ful", "row 'sgd': unknown row 'ful'", "full"),
        ("id: sgd\n", "id: full\n", "- id: full", "row 'full' occurs twice", ""),
        ("title: Adapters", "title: A\n    title: B", "title: B", "key 'title' occurs twice", ""),
        ("n_layer: 12", "layers: 12", "gpt2:", "model 'gpt2': the architecture does not state its layers", ""),
        ("engine: lightning", "engine: litgpt", "model: gpt2", "model = 'gpt2': LitGPT does not have this model", ""),
        ("alpaca2k", "gourmetgram-captions", "dataset: gourmetgram", "the model takes no images", ""),
        ("engine: l", "task: generate\n  engine: l", "task: generate", "allowed: hf_trainer", ""),
        ("engine: l", "accelerator: cpu\n  engine: l", "accelerator: cpu", "needs task: generate and 1 device", ""),
    ],
)
def test_an_error_names_its_line_its_value_and_the_allowed_values(mistakes, old, new, line, message, suggestion):
    found = mistakes((old, new))
    errors = [text for where, text in found if where.startswith(line) and message in text]
    assert {text.partition("did you mean ")[2].rstrip("?") for text in errors} == {suggestion}


def test_all_errors_are_found_at_once(mistakes):
    texts = " ".join(
        text
        for _, text in mistakes(
            ("title: Fine", "titel: Fine"),
            ("batch_size: 8", "batch_size: 0"),
            ("lr: 1.0e-4", "lr: big"),
            ("  workers: 0\n", ""),
            ("{optimizer: sgd}", "{optimizr: sgd}"),
            ("row: sgd,", "row: sdg,"),
            ("y: peak_gib", "y: peak_gb"),
        )
    )
    for word in (
        "'titel'",
        "'title' is missing",
        "batch_size = 0",
        "lr = 'big'",
        "'workers'",
        "optimizr",
        "peak_gb",
    ):
        assert word in texts
    assert "accumulate' is missing" not in texts


def test_a_claim_about_an_invalid_row_is_not_a_second_error(mistakes):
    assert all("unknown row" not in text for _, text in mistakes(("title: Adapters", "titel: Adapters")))


@pytest.mark.parametrize("text", ["", "[]", "rows: 3", "rows: [1, null]\ncommon: 3\ncards: x\nmodels: [1]\nclaims: 2"])
def test_a_file_without_a_suite_is_an_error_in_one_line(mistakes, text):
    assert mistakes(text=text + "\n") != set()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "- " * 100_000,
        "a: &a [*a]",
        "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10) if n else 'x'}]" for n in range(12)),
        "a0: &a0 {x: 1}\n" + "\n".join(f"a{n}: &a{n} {{<<: [{f'*a{n - 1}, ' * 10}]}}" for n in range(1, 12)),
        "!!python/object/apply:os.system [ls]",
        "a: 2020-13-45",
        "{[1]: 2}",
        "a: \x00",
        "x" * (MAX_BYTES + 1),
    ],
)
def test_hostile_yaml_is_rejected_in_one_line(tmp_path, text):
    path = tmp_path / "lab.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"lab\.yaml: ") as rejected:
        read_document(path)
    assert "\n" not in str(rejected.value)


def test_a_binary_file_is_rejected(tmp_path):
    path = tmp_path / "lab.yaml"
    path.write_bytes(b"a: \xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        read_document(path)


def test_a_merged_yaml_key_may_be_overridden(tmp_path):
    path = tmp_path / "lab.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")
    document = read_document(path)
    assert document.data["b"] == {"x": 3, "y": 2}
    assert document.duplicates == ()
