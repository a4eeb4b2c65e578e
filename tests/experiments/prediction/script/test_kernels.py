"""Kernels that scripts run without PyTorch's operations: flash-attn, Triton, CUDA graphs, compiled code, extensions."""

import ast

import pytest

from experiments.errors import InputError
from experiments.prediction.script.trace import ScriptFailed

H200 = ["h200_141gb"]
MEASURE = """
import torch
import flash_attn
held = []
def empty(*sizes):
    return torch.empty(sizes, dtype=torch.bfloat16, device="cuda", requires_grad=True)
def measure(function, *inputs):
    cuda = torch.cuda
    cuda.synchronize()
    cuda.reset_peak_memory_stats()
    before = cuda.memory_allocated()
    result = function(*inputs)
    forward, kept = cuda.max_memory_allocated() - before, cuda.memory_allocated() - before
    gradient = torch.empty_like(result)
    cuda.reset_peak_memory_stats()
    before = cuda.memory_allocated()
    gradients = torch.autograd.grad(result, inputs, gradient)
    held.append((inputs, result, gradients))
    assert [one.shape for one in gradients] == [one.shape for one in inputs]
    return forward, kept, cuda.max_memory_allocated() - before
"""


@pytest.mark.parametrize(
    ("sizes", "forward", "kept", "backward", "output"),
    [
        ((1, 1024, 12, 12, 64), 14_402_560, 1_623_040, 11_059_200, 1_572_864),
        ((1, 2048, 8, 2, 128), 4_260_864, 4_260_864, 31_522_816, 4_194_304),
        ((4, 512, 32, 8, 128), 17_040_384, 17_040_384, 126_091_264, 16_777_216),
    ],
)
def test_flash_attention_allocates_as_its_kernels_did_on_an_h200(
    traced, tmp_path, sizes, forward, kept, backward, output
):
    """PyTorch's call of these kernels was measured. It also keeps 512 bytes, and copies the output and its gradient."""
    traced(
        f"""{MEASURE}
batch, length, heads, groups, width = {sizes}
tensors = [empty(batch, length, count, width) for count in (heads, groups, groups)]
open("found", "w").write(str(measure(flash_attn.flash_attn_func, *tensors)))
""",
        cards=H200,
    )
    assert (tmp_path / "found").read_text() == str((forward - 512, kept - 512, backward - 2 * output))


def test_packed_and_concatenated_inputs_of_flash_attention_take_no_copies(traced, tmp_path):
    """In each backward pass: the gradients, the query's in 32 bit, and for each query a sum in 32 bit."""
    traced(f"""{MEASURE}
starts = torch.tensor([0, 800, 8192], dtype=torch.int32, device="cuda")
def concatenated(q, k, v):
    return flash_attn.flash_attn_varlen_func(q, k, v, starts, starts, 7392, 7392, causal=True)
def concatenated_and_packed(q, kv):
    return flash_attn.flash_attn_varlen_kvpacked_func(q, kv, starts, starts, 7392, 7392)
found = [
    measure(flash_attn.flash_attn_qkvpacked_func, empty(8, 1024, 3, 16, 64)),
    measure(flash_attn.flash_attn_kvpacked_func, empty(8, 1024, 16, 64), empty(8, 1024, 2, 16, 64)),
    measure(concatenated, *(empty(8192, 16, 64) for _ in range(3))),
    measure(concatenated_and_packed, empty(8192, 16, 64), empty(8192, 2, 16, 64)),
]
open("found", "w").write(repr(found))
""")
    tokens, width, values = 8192, 16 * 64, 2 * 8192 * 16 * 64
    sums = 4 * tokens * 16
    passes = [values + sums + 512] * 2
    whole = [*passes, 3 * values + 4 * tokens * width + sums]
    texts = [*passes, 3 * values + 4 * (tokens + 2 * 128) * (width + 16)]
    found = ast.literal_eval((tmp_path / "found").read_text())
    assert [*map(list, found)] == [pytest.approx(one, abs=2**20) for one in (whole, whole, texts, texts)]


def test_padding_is_removed_and_restored_by_flash_attn(traced):
    traced("""
import torch
from flash_attn.bert_padding import pad_input, unpad_input
from flash_attn.layers.rotary import apply_rotary_emb
states = torch.zeros(2, 8, 4, 16, device="cuda", requires_grad=True)
mask = (torch.arange(8) < torch.tensor([[3], [5]])).cuda()
tokens, positions, starts, longest, lengths = unpad_input(states, mask)
assert tokens.shape == (8, 4, 16) and longest == 5 and starts.tolist() == [0, 3, 8] and lengths.tolist() == [3, 5]
turned = apply_rotary_emb(tokens, torch.zeros(8, 8, device="cuda"), torch.zeros(8, 8, device="cuda"))
pad_input(turned, positions, 2, 8).sum().backward()
assert states.grad.shape == states.shape
""")


def test_transformers_uses_flash_attention_that_is_not_installed(trace_in_new_process):
    (one,) = trace_in_new_process("""
import torch
from transformers import LlamaConfig, LlamaForCausalLM
sizes = dict(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM._from_config(
    LlamaConfig(**sizes), attn_implementation="flash_attention_2", dtype=torch.bfloat16
).cuda()
optimizer = torch.optim.SGD(model.parameters())
while True:
    tokens = torch.ones(2, 16, dtype=torch.int64, device="cuda")
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
""")
    assert (one.ended, one.steps) == ("stopped", 2)
    assert any(note.startswith("flash-attn was imported (it is not installed here)") for note in one.notes)


@pytest.mark.parametrize(
    ("arguments", "card", "error"),
    [
        ("*(torch.zeros(1, 8, 2, 16, device='cuda') for _ in range(3))", "a100_80gb", "only support fp16 and bf16"),
        ("*(empty(1, 8, heads, 16) for heads in (3, 2, 2))", "a100_80gb", "must divide number of heads in query"),
        ("*(empty(1, 8, 2, 264) for _ in range(3))", "a100_80gb", "head dimension at most 256"),
        ("*(empty(1, 8, 2, 16) for _ in range(3))", "v100_16gb", "only supports Ampere GPUs or newer"),
    ],
)
def test_flash_attention_fails_as_on_a_gpu_if_its_kernels_do_not_support_the_tensors(
    traced, capfd, arguments, card, error
):
    with pytest.raises(ScriptFailed):
        traced(f"{MEASURE}\nflash_attn.flash_attn_func({arguments})", cards=[card])
    assert error in capfd.readouterr().err


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (
            "import flash_attn, torch\n"
            "texts = [torch.empty(8, 2, 16, device='cuda')] * 3\n"
            "flash_attn.flash_attn_varlen_func(*texts, *texts[:2], 8, 8, block_table=texts[0])",
            r"block_table \(a paged cache\) is not modeled",
        ),
        ("import flash_attn\nflash_attn.flash_attn_with_kvcache()", "flash_attn_with_kvcache is not modeled"),
        (
            "from torch.utils import cpp_extension\ncpp_extension.CUDAExtension('fast_ops', ['fast_ops.cu'])",
            "the extension fast_ops has CUDA code",
        ),
        (
            "from torch.utils.cpp_extension import load_inline\n"
            "load_inline('fast_ops', '', cuda_sources='void f() {}', functions=[])",
            "the extension fast_ops has CUDA code",
        ),
    ],
)
def test_what_cannot_run_without_a_gpu_is_an_error_in_one_line(traced, source, error):
    with pytest.raises(InputError, match=error):
        traced(source)


REPORT = """
import torch
cuda = torch.cuda
reports = []
def report():
    sizes = cuda.memory_allocated(), cuda.memory_reserved(), cuda.max_memory_reserved()
    reports.append(" ".join(f"{size / 2**20:.2f}" for size in sizes))
    open("found", "w").write(", ".join(reports))
model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(4))).cuda()
"""


def test_the_graph_of_a_whole_step_takes_the_memory_measured_on_an_h200(traced, tmp_path):
    """Reported after the warm-up, the capture and a replay; when the graph is deleted; when the cache is emptied."""
    traced(
        f"""{REPORT}
optimizer = torch.optim.AdamW(model.parameters(), capturable=True)
batch = torch.randn(4096, 1024, device="cuda")
stream = cuda.Stream()
stream.wait_stream(cuda.current_stream())
with cuda.stream(stream):
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        model(batch).square().mean().backward()
        optimizer.step()
cuda.current_stream().wait_stream(stream)
report()
graph = cuda.CUDAGraph()
optimizer.zero_grad(set_to_none=True)
with cuda.graph(graph):
    loss = model(batch).square().mean()
    loss.backward()
    optimizer.step()
report()
graph.replay()
cuda.empty_cache()
report()
del loss, graph
optimizer.zero_grad(set_to_none=True)
report()
cuda.empty_cache()
report()
""",
        cards=H200,
    )
    measured = "145.07 296.00 296.00, 210.07 364.00 364.00, 210.07 364.00 364.00, 194.05 364.00 364.00"
    assert (tmp_path / "found").read_text() == f"{measured}, 194.05 202.00 364.00"


def test_graphs_of_the_passes_of_a_model_take_the_memory_measured_on_an_h200(traced, tmp_path):
    one = traced(
        f"""{REPORT}
optimizer = torch.optim.AdamW(model.parameters())
batch = torch.randn(4096, 1024, device="cuda", requires_grad=True)
model = cuda.make_graphed_callables(model, (batch,))
report()
while True:
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()
    report()
""",
        cards=H200,
    )
    measured = "226.03 336.00 336.00, 258.06 400.00 400.00, 258.06 432.00 432.00"
    assert (tmp_path / "found").read_text() == measured
    assert one.time_unknown.startswith("CUDA graphs were captured")
    assert any(note.startswith("CUDA graphs were captured") for note in one.notes)


def test_replays_of_a_captured_optimizer_step_count_as_steps(traced, tmp_path):
    one = traced("""
import torch
weights = torch.nn.Parameter(torch.zeros(1024, device="cuda"))
optimizer = torch.optim.SGD([weights])
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    weights.sum().backward()
    optimizer.step()
replays = 0
while True:
    graph.replay()
    replays += 1
    open("replays", "w").write(str(replays))
""")
    assert one.ended == "stopped"
    assert (tmp_path / "replays").read_text() == "2"


COMPILED = """
import torch
weights = torch.nn.Parameter(torch.zeros(1024, device="cuda"))
optimizer = torch.optim.SGD([weights])
@torch.compile{options}
def loss_of(values):
    return values.sum()
while True:
    {loss}.backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("options", "has_graphs"),
    [
        ("", False),
        ("(dynamic=True)", False),
        ("(mode='reduce-overhead')", True),
        ("(options={'triton.cudagraphs': True})", True),
    ],
)
def test_a_call_of_a_compiled_function_is_named_and_its_time_is_unknown(traced, options, has_graphs):
    one = traced(COMPILED.format(options=options, loss="loss_of(weights)"))
    (note,) = (note for note in one.notes if "torch.compile was called (loss_of)" in note)
    assert "so the peak is usually too high" in note
    assert ("reserved memory is too low" in note) == has_graphs
    assert one.time_unknown == "torch.compile was called"


@pytest.mark.parametrize("library", ["xformers", "apex", "transformer_engine"])
def test_a_library_whose_kernels_are_not_modeled_is_named_with_the_direction_of_the_error(traced, tmp_path, library):
    (tmp_path / f"{library}.py").touch()
    one = traced(f"import {library}, torch\ntorch.ones(1, device='cuda')")
    (note,) = (note for note in one.notes if note.startswith(f"{library} was imported"))
    assert note.endswith("is not counted, so the peak can be too low")


def test_a_compiled_function_that_is_not_called_has_no_note(traced):
    one = traced(COMPILED.format(options="", loss="weights.sum()"))
    assert not any("torch.compile" in note for note in one.notes)
    assert one.time_unknown == ""


@pytest.mark.usefixtures("triton")
def test_kernels_of_an_installed_triton_are_not_run_and_the_memory_of_their_results_is_counted(trace_in_new_process):
    source = """
import torch
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction
values = torch.empty(64 * 2**18, device="cuda")
result = torch.empty_like(values)
{}
"""
    launches = "JITFunction().run(values, 3, out=result, grid=(7,))\nAutotuner().run(values, result)"
    (launched,), (without,) = (trace_in_new_process(source.format(lines)) for lines in (launches, ""))
    assert launched.peak_gib == without.peak_gib == pytest.approx(128 / 1024)
    assert not any("triton" in note for note in launched.notes)


def test_kernels_in_triton_are_skipped_and_named_without_triton(traced):
    one = traced("""
import torch
import triton
import triton.language as tl
from triton.language.extra.libdevice import rsqrt
@triton.autotune(configs=[triton.Config({"BLOCK": 128}, num_warps=4)], key=["count"])
@triton.heuristics({"EVEN": lambda values: values["count"] % 2 == 0})
@triton.jit
def tuned(values, count, BLOCK: tl.constexpr):
    tl.store(values, rsqrt(tl.load(values)))
@triton.jit(do_not_specialize=["count"])
def plain(values, result, count, BLOCK: tl.constexpr):
    tl.store(result, tl.load(values))
values = torch.empty(64 * 2**18, device="cuda")
result = torch.empty_like(values)
plain[(triton.cdiv(len(values), 1024),)](values, result, len(values), BLOCK=triton.next_power_of_2(1000))
tuned[lambda meta: (1,)](values, len(values))
torch.library.wrap_triton(plain)[(1,)](values, result, len(values), BLOCK=128)
""")
    assert one.peak_gib == pytest.approx(128 / 1024)
    assert any(note.startswith("triton is not installed") and "(plain, tuned)" in note for note in one.notes)


def test_an_installed_flash_attn_has_its_own_modules_but_not_its_own_kernels(trace_in_new_process, tmp_path):
    for name in ("__init__", "flash_attn_interface", "losses/__init__", "layers/__init__", "layers/rotary"):
        file = tmp_path / "packages" / "flash_attn" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("import missing_kernels" if name in ("__init__", "flash_attn_interface") else "OWN = True")
    trace_in_new_process("""
import sys
sys.path.append("packages")
import torch
from flash_attn import losses
from flash_attn.flash_attn_interface import flash_attn_func
from flash_attn.layers import rotary
assert losses.OWN and rotary.OWN
flash_attn_func(*(torch.empty(1, 8, 2, 16, dtype=torch.bfloat16, device="cuda") for _ in range(3)))
""")
