"""What a script needs and this computer lacks: weights, tokenizers, files, data sets, the hub."""

import socket
import subprocess
from typing import Any

import pytest
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from experiments.prediction.script.trace import ScriptFailed
from experiments.prediction.script.traced.missing.failure import describe_failure
from experiments.prediction.script.traced.missing.tokenizer import _make_tokenizer
from experiments.prediction.script.traced.missing.weights import _weights_without_values

GIB = 2**30
TINY = """
import sys, torch
from transformers import {classes}, BitsAndBytesConfig, LlamaConfig
config = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
                     vocab_size=32000, tie_word_embeddings=True, dtype="bfloat16", pad_token_id=0)
config.save_pretrained("tiny")
"""
TRAIN = """
optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1.0)
while True:
    text = torch.zeros(2, 16, dtype=torch.long, device="cuda")
    model(input_ids=text)[0].float().sum().backward()
    optimizer.step()
"""


def test_a_quantized_model_of_random_weights_has_the_memory_of_a_downloaded_one(traced):
    load = 'model = AutoModelForCausalLM.from_pretrained("tiny", device_map="cuda", quantization_config={})\n'
    four_bit = "BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4')"
    start = TINY.format(classes="AutoModelForCausalLM")
    plain = traced(start + load.format(None) + TRAIN, fake_weights=True)
    quantized = traced(start + load.format(four_bit) + TRAIN, fake_weights=True)
    embedding = 32000 * 256 * 2 / GIB
    assert plain.at_peak.params_gib == pytest.approx(2 * plain.parameters / GIB, rel=0.01)
    layers = plain.at_peak.params_gib - embedding
    assert quantized.at_peak.params_gib == pytest.approx(embedding + layers * (0.5 + 4 / 64) / 2, rel=0.02)


def test_the_model_keeps_its_name_and_takes_the_arguments_of_its_configuration(traced, tmp_path):
    start = TINY.format(classes="LlamaForSequenceClassification")
    load = """
options = {"num_labels": 7, "dtype": torch.float32}
model = LlamaForSequenceClassification.from_pretrained(pretrained_model_name_or_path="tiny", **options).cuda()
open("found", "w").write(f"{model.name_or_path} {model.config.name_or_path} {model.num_labels} {model.dtype}")
"""
    traced(start + load + TRAIN, fake_weights=True)
    assert (tmp_path / "found").read_text() == "tiny tiny 7 torch.float32"


def test_tied_weights_are_created_once() -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    config.tie_word_embeddings = True
    names = _weights_without_values(LlamaForCausalLM, config)
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_weights_that_the_saved_model_lacks_are_initialized_by_the_model() -> None:
    config = BertConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    config.architectures = ["BertModel"]
    names = _weights_without_values(BertForSequenceClassification, config)
    assert "embeddings.word_embeddings.weight" in names
    assert not any("classifier" in name for name in names)


START = """
import os, torch
model = torch.nn.Linear(64, 64).cuda()
optimizer = torch.optim.AdamW(model.parameters())
"""
STEPS = """
while True:
    model(torch.randn(4, 64, device="cuda")).sum().backward()
    optimizer.step()
"""
RESUME = """
model.load_state_dict(torch.load("best.pt")["model"], strict=False)
optimizer.load_state_dict(torch.load(map_location="cpu", f="best.pt")["optimizer"])
"""
SAFE = """
from safetensors.torch import load_file, load_model
print(model.load_state_dict(load_file("best.safetensors")).missing_keys, load_model(model, "best.safetensors"))
"""
DOWNLOAD = """
model.load_state_dict(torch.hub.load_state_dict_from_url("https://127.0.0.1:9/best.pth", model_dir="best"))
"""


@pytest.fixture
def failure(trace):
    """Return a function that traces a script which fails, and returns the line about its cause."""

    def failure(*arguments, **options) -> str:
        with pytest.raises(ScriptFailed) as caught:
            trace(*arguments, **options)
        return str(caught.value)

    return failure


def test_made_up_weights_are_named_in_a_note_and_missing_ones_in_the_last_line(traced, failure):
    load = TINY.format(classes="AutoModelForCausalLM") + 'model = AutoModelForCausalLM.from_pretrained("tiny").cuda()\n'
    (note, *_) = traced(load + TRAIN, fake_weights=True).notes
    assert note == "the weights of 'tiny' are missing and were made up from its configuration"
    line = failure(load + TRAIN)
    assert line == "missing: the weights of 'tiny'; --fake-weights makes them up from the model's configuration"


@pytest.mark.parametrize("fake_weights", [False, True])
def test_a_missing_configuration_is_named_with_what_to_do(failure, fake_weights):
    load = """
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained("made/up", local_files_only=True)
"""
    line = failure(load, fake_weights=fake_weights)
    assert line.startswith("missing: the configuration of 'made/up' (not in the Hugging Face cache")
    assert "hf download made/up config.json" in line


@pytest.mark.parametrize("load", [RESUME, SAFE, DOWNLOAD])
def test_the_contents_of_a_missing_file_load_as_the_values_that_the_model_was_built_with(traced, failure, load):
    one = traced(START + load + STEPS, fake_weights=True)
    assert one.steps == 2
    assert "best" in one.notes[0]
    assert "is missing: load_state_dict changed nothing" in one.notes[0]
    line = failure(START + load + STEPS)
    assert line.startswith("missing: the file ")
    assert (
        line.endswith("best.pt; --fake-weights goes on with the values that the model was built with") or load != RESUME
    )


@pytest.mark.parametrize("use", ['sorted(torch.load("best.pt"))', 'range(torch.load("best.pt")["epoch"])'])
def test_a_script_that_looks_into_a_missing_file_fails_and_the_line_names_the_file(failure, use):
    line = failure(START + use, fake_weights=True)
    assert line.startswith("missing: the contents of best.pt")
    assert "which the script reads" in line


def test_a_file_that_exists_is_loaded(traced):
    load = 'torch.save(model.state_dict(), "best.pt")\nprint(model.load_state_dict(torch.load("best.pt")))\n'
    assert not any("best.pt" in note for note in traced(START + load + STEPS, fake_weights=True).notes)


def test_a_missing_tokenizer_is_made_up_on_request_or_named(traced, failure):
    load = (
        TINY.format(classes="AutoTokenizer, LlamaForCausalLM")
        + 'tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path="tiny")\n'
    )
    use = """
assert len(tokenizer) == 32000 and tokenizer.pad_token_id == 0
model = LlamaForCausalLM(config).cuda()
optimizer = torch.optim.AdamW(model.parameters())
batch = tokenizer(["a text", "text"], padding=True, return_tensors="pt").to("cuda")
while True:
    model(**batch, labels=batch.input_ids).loss.backward()
    optimizer.step()
"""
    one = traced(load + use, fake_weights=True)
    assert one.notes[0].startswith("the tokenizer of 'tiny' is missing and was made up: it has 32000 tokens")
    assert failure(load).startswith("missing: the tokenizer of 'tiny'; download it once with network")


def test_a_made_up_tokenizer_restores_texts_and_has_the_special_tokens_of_trainings(tmp_path):
    LlamaConfig(vocab_size=300, eos_token_id=7, max_position_embeddings=64).save_pretrained(tmp_path)
    tokenizer = _make_tokenizer(tmp_path, {"padding_side": "left"})
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.model_max_length) == (300, 7, 64)
    assert tokenizer.decode(tokenizer("Größe <mask>").input_ids) == "<s>Größe <mask></s>"
    assert tokenizer(["a", "bcd"], padding=True).input_ids[0][0] == tokenizer.pad_token_id
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<s>user\nhi</s>\n"
    LlamaConfig(vocab_size=100).save_pretrained(tmp_path)
    assert _make_tokenizer(tmp_path, {}) is None


def test_nothing_is_uploaded_to_the_hub(traced, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        upload = (
            TINY.format(classes="LlamaForCausalLM")
            + """
from datasets import Dataset
from huggingface_hub import HfApi, constants, create_repo, upload_file
constants.ENDPOINT = os.environ["HF_ENDPOINT"]
assert create_repo("model").repo_id == "user/model"
upload_file(path_or_fileobj=b"x", path_in_repo="a", repo_id="me/x")
assert HfApi().upload_folder(folder_path=".", repo_id="me/x", run_as_future=True).done()
Dataset.from_dict({"text": ["a"]}).push_to_hub("me/data")
LlamaForCausalLM(config).push_to_hub("me/x")
""".replace("from datasets", "import os\nfrom datasets")
        )
        one = traced(upload + START + STEPS)
        with pytest.raises(TimeoutError):
            server.accept()
    assert one.notes.count("uploads to the Hugging Face hub were skipped") == 1


def test_a_missing_data_set_is_named_and_not_made_up(failure):
    load = """
from huggingface_hub import constants
constants.HF_HUB_OFFLINE = True
from datasets import config, load_dataset
config.HF_HUB_OFFLINE = True
load_dataset("made/up")
"""
    assert failure(load, fake_weights=True).startswith(
        "missing: the data set 'made/up', or a file of it; download it once"
    )


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import no_such_module", "missing: the Python module 'no_such_module'; install its package"),
        ("open('no.csv')", "missing: the file no.csv; create it"),
        ("try:\n    open('no.csv')\nexcept OSError:\n    raise SystemExit('no data')", "missing: the file no.csv"),
        ("import subprocess\nsubprocess.run(['nvidia-smi'])", "the simulated GPU does not support this: FileNotFound"),
        ("raise RuntimeError('Tried to instantiate dummy base class X')", "the simulated GPU does not support this: "),
        (
            "from experiments.prediction.script.command import parse_command\nparse_command([])",
            "the simulated GPU does not",
        ),
        ("raise ValueError('CUDA is fine')", "the script itself failed with exit code 1; its output is above"),
        ("try:\n    import no\nexcept ImportError:\n    1 / 0", "the script itself failed with exit code 1"),
        ("raise ConnectionError('no host')", "missing: a server or the network (no host), which the script needs"),
    ],
)
def test_the_last_line_states_whether_something_is_missing_or_unsupported_or_the_script_failed(source, line):
    device: Any = NoReads()
    try:
        exec(source, {})
    except BaseException as error:
        found = describe_failure(error, 1, device)
    assert found.startswith(line)


def test_a_missing_program_is_named_as_a_program():
    no_reads: Any = NoReads()
    with pytest.raises(FileNotFoundError) as caught:
        subprocess.run(["no-such-program"], check=False)
    assert describe_failure(caught.value, 1, no_reads) == "missing: the program no-such-program; install it"


def test_a_library_that_needs_cuda_is_a_limit_of_the_simulated_gpu():
    no_reads: Any = NoReads()
    error = ImportError("libcudart.so.12: cannot open shared object file: No such file or directory")
    line = describe_failure(error, 1, no_reads)
    assert line.startswith("the simulated GPU does not support this: ImportError: libcudart.so.12")


def test_the_line_of_a_program_that_fails_without_consequence_is_not_the_cause_of_a_later_failure(failure):
    check = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import not_there'])\n"
    assert failure(check + "raise ValueError('own')").startswith("the script itself failed with exit code 1")


def test_a_missing_file_of_the_hub_is_named_with_its_repository():
    with pytest.raises(LocalEntryNotFoundError) as caught:
        hf_hub_download("made/up", "model.bin", local_files_only=True)
    no_reads: Any = NoReads()
    line = describe_failure(caught.value, 1, no_reads)
    assert line.startswith("missing: the file model.bin of 'made/up' on the Hugging Face hub (")


def test_an_error_of_a_tokenizer_that_is_not_missing_is_an_error_of_the_script(failure):
    load = (
        TINY.format(classes="AutoTokenizer")
        + """
open("tiny/tokenizer_config.json", "w").write("{")
AutoTokenizer.from_pretrained("tiny")
"""
    )
    assert failure(load, fake_weights=True).startswith("the script itself failed with exit code 1")


class NoReads:
    """A device from which the host has read nothing."""

    def operation_count(self):
        return 0

    def operations(self, begin, end):
        return {}


@pytest.mark.parametrize("check", ["assert loss.item() > 0", "assert torch.isfinite(loss)", "assert loss.cpu() > 0"])
def test_a_script_that_checks_unknown_values_learns_that_they_read_as_zero(failure, check):
    line = failure(START + "loss = model(torch.randn(4, 64, device='cuda')).sum()\n" + check)
    assert line.startswith("the script itself failed with exit code 1; its output is above; values of floating-point")


def test_the_line_of_a_script_that_reads_no_unknown_value_has_no_hint(failure):
    line = failure(START + "assert torch.arange(3, device='cuda').sum().item() == 4")
    assert line == "the script itself failed with exit code 1; its output is above"
