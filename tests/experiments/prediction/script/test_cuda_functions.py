"""Functions of PyTorch that scripts call on a GPU, on the phantom device."""

import pytest

GIB = 2**30
CALLS = """
torch.Generator(device="cuda").manual_seed(0)
torch.randn(3, generator=torch.Generator("cuda"), device="cuda")
torch.randperm(8, generator=torch.Generator("cuda"), device="cuda")
torch.multinomial(torch.ones(5, device="cuda"), 2, generator=torch.Generator("cuda"))
torch.empty(4, device="cuda").bernoulli_(0.5, generator=torch.Generator("cuda"))
torch.accelerator.synchronize()
torch.accelerator.set_stream(torch.cuda.default_stream())
torch.cuda.ExternalStream(1).synchronize()
torch.cuda.Stream().__enter__().__exit__(None, None, None)
torch.cuda.Stream.priority_range()
torch.ones(1, device="cuda").record_stream(torch.accelerator.current_stream())
torch.cuda.streams.Stream().wait_event(torch.cuda.streams.Event())
torch.accelerator.empty_cache()
torch.accelerator.reset_peak_memory_stats()
torch.accelerator.get_memory_info()
torch.cuda.memory_summary()
torch.cuda.memory_snapshot()
torch.cuda.memory.reset_peak_memory_stats()
torch.cuda.reset_max_memory_allocated()
torch.cuda.memory._record_memory_history()
torch.cuda.memory._dump_snapshot("snapshot.pickle")
torch.cuda.seed()
torch.cuda.initial_seed()
torch.cuda.random.get_rng_state()
torch.random.fork_rng(devices=[0]).__enter__()
torch.cuda.default_generators[0].manual_seed(1)
torch.cuda.default_generators[1].set_state(torch.cuda.get_rng_state())
torch.Generator("cuda").set_state(torch.cuda.default_generators[0].get_state())
assert torch.cuda.get_rng_state().shape == torch.Generator("cuda").get_state().shape == (16,)
torch.cuda.utilization()
torch.cuda.nccl.version() >= (2, 10)
torch.cuda.can_device_access_peer(0, 0)
torch.cuda.device_of(torch.ones(1, device="cuda")).__enter__()
torch.cuda.set_sync_debug_mode(0)
torch.cuda.get_per_process_memory_fraction()
torch.nn.DataParallel(torch.nn.Linear(2, 2).cuda())(torch.ones(2, 2))
torch.nn.GRU(4, 4).cuda()(torch.ones(3, 2, 4, device="cuda"))[0].sum().backward()
torch.nn.LSTM(4, 4).cuda()(torch.ones(3, 2, 4, device="cuda"))[0].sum().backward()
torch.unique(torch.ones(4, device="cuda"), return_inverse=True, return_counts=True)
torch.unique_consecutive(torch.ones(4, 2, device="cuda"), dim=0)
torch.nonzero(torch.ones(4, device="cuda"))
torch.ones(4, device="cuda")[torch.ones(4, device="cuda") > 0]
torch.distributions.Normal(torch.zeros(2, device="cuda"), 1.0).sample()
torch.distributions.Categorical(logits=torch.zeros(2, 3, device="cuda")).sample()
"""


def test_every_listed_function_of_torch_cuda_runs_without_an_error(traced, tmp_path):
    lines = CALLS.strip().splitlines()
    traced(f"""
import torch
torch.ones(1, device="cuda")
with open("failed", "w") as failed:
    for line in {lines!r}:
        try:
            exec(line)
        except Exception as error:
            print(line, repr(error), file=failed)
""")
    assert (tmp_path / "failed").read_text() == ""


def test_every_function_that_reports_memory_reports_the_same_value(traced, tmp_path):
    traced("""
import torch
kept = torch.empty(300 * 2**20, dtype=torch.uint8, device="cuda")
del kept
kept = torch.empty(100 * 2**20, dtype=torch.uint8, device="cuda")
reports = (
    torch.cuda.memory_allocated(), torch.cuda.memory.memory_allocated(), torch.accelerator.memory_allocated(),
    torch.cuda.memory_stats()["allocated_bytes.all.current"],
    torch.cuda.max_memory_allocated(), torch.cuda.memory.max_memory_allocated(),
    torch.accelerator.max_memory_allocated(), torch.cuda.memory_stats()["allocated_bytes.all.peak"],
    torch.cuda.memory_reserved(), torch.accelerator.memory_reserved(),
)
open("reports", "w").write(" ".join(str(one // 2**20) for one in reports))
""")
    assert (tmp_path / "reports").read_text() == " ".join(["100"] * 4 + ["300"] * 6)


@pytest.mark.parametrize("place", ["map_location='cuda'", "map_location='cuda:0', weights_only=False", "mmap=True"])
def test_torch_load_places_weights_on_the_device(traced, place):
    where = "cuda" if "cuda" in place else "cpu"
    one = traced(f"""
import torch
torch.save({{"weight": torch.zeros(64 * 2**18)}}, "weights.pt")
torch.ones(1, device="cuda")
weight = torch.load("weights.pt", {place})["weight"]
assert weight.device.type == {where!r}, weight.device
""")
    assert one.peak_gib == pytest.approx(64 * 2**20 / GIB if where == "cuda" else 0, abs=0.001)


def test_a_random_generator_has_the_device_that_it_was_created_for(traced, tmp_path):
    traced("""
import torch
torch.ones(1, device="cuda")
made = torch.Generator("cuda"), torch.Generator()
found = [one.device.type for one in made]
open("found", "w").write(f"{found} {all(isinstance(one, torch.Generator) for one in made)}")
""")
    assert (tmp_path / "found").read_text() == "['cuda', 'cpu'] True"


TRAIN = """
import sys, torch
model = torch.nn.Linear(1024, 1024).cuda()
optimizer = torch.optim.SGD(model.parameters())
while True:
    model(torch.zeros(int(sys.argv[1]), 1024, device="cuda")).sum().backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("starter", "ranks"), [("[sys.executable, 'inner.py', '64']", 1), ("['torchrun', '--nproc-per-node=2', *FILE]", 2)]
)
def test_the_program_that_a_launcher_starts_is_traced(traced, tmp_path, starter, ranks):
    (tmp_path / "inner.py").write_text(TRAIN)
    one = traced(f"""
import os, subprocess, sys
FILE = ["inner.py", "64"]
subprocess.run(["true"], check=True)
subprocess.run([sys.executable, "-c", "pass"], check=True)
sys.exit(subprocess.run({starter}, env={{**os.environ, "SEEN": "1"}}).returncode)
""")
    assert (one.model, one.steps, one.ended, one.ranks) == ("Linear", 2, "stopped", ranks)


def test_a_program_that_a_script_starts_before_its_training_runs_as_a_process(traced, tmp_path):
    (tmp_path / "prepare.py").write_text("import sys\nopen('prepared', 'w').write('yes')\nsys.exit(3)")
    (tmp_path / "answer.py").write_text("print(64)")
    one = traced(
        """
import subprocess, sys
code = subprocess.run([sys.executable, "prepare.py"], env={"LAUNCHED": "1"}).returncode
rows = subprocess.check_output([sys.executable, "answer.py"], text=True)
sys.argv[1:] = [rows if code == 3 else "none"]
"""
        + TRAIN
    )
    assert (one.model, one.steps) == ("Linear", 2)
    assert (tmp_path / "prepared").read_text() == "yes"


def test_a_program_that_a_script_starts_during_its_training_runs_as_a_process(traced, tmp_path):
    (tmp_path / "helper.py").write_text("open('helped', 'w').write('yes')")
    one = traced(
        TRAIN.replace("while True:", "import subprocess\nsubprocess.run([sys.executable, 'helper.py'])\nwhile True:"),
        "64",
    )
    assert (one.model, one.steps) == ("Linear", 2)
    assert (tmp_path / "helped").read_text() == "yes"


def test_a_transformer_s_mask_counts_as_causal_unless_is_causal_is_false(traced):
    source = """
import torch
from torch.nn import TransformerEncoder, TransformerEncoderLayer
layer = TransformerEncoderLayer(256, 4, 256, batch_first=True)
model = TransformerEncoder(layer, 2, enable_nested_tensor=False).cuda().bfloat16()
mask = torch.triu(torch.full((1024, 1024), float("-inf")), 1).cuda().bfloat16()
texts = torch.zeros(4, 1024, 256, device="cuda", dtype=torch.bfloat16)
model(texts, mask=mask, is_causal={}).sum().backward()
"""
    detected, causal, other = (traced(source.format(value)) for value in (None, True, False))
    assert detected.peak_gib == causal.peak_gib
    assert other.peak_gib > causal.peak_gib


def test_only_the_prediction_of_a_model_with_recurrent_layers_has_a_note_on_cudnn(traced):
    source = TRAIN.replace("model = torch.nn.Linear(1024, 1024).cuda()", "{}").replace("model(", "model(x=")
    model = """
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.part = torch.nn.{}(1024, 1024)
    def forward(self, x):
        return self.part(x)[0]
model = Model().cuda()"""
    lstm, bag = (traced(source.format(model.format(name)), "64") for name in ("LSTM", "Linear"))
    assert any("cuDNN" in note for note in lstm.notes)
    assert not any("cuDNN" in note for note in bag.notes)


@pytest.mark.parametrize("function", ["silu", "mish", "gelu", "softplus", "hardswish", "leaky_relu"])
def test_the_backward_pass_of_an_activation_function_allocates_only_its_result(traced, function):
    one = traced(f"""
import torch
values = torch.empty(64 * 2**18, device="cuda", requires_grad=True)
result = torch.nn.functional.{function}(values)
result.backward(torch.empty_like(result))
""")
    assert one.peak_gib == pytest.approx(4 * 64 * 2**20 / GIB, abs=0.001)


DETECTION = """
import torch
import torchvision
class Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, boxes):
        ctx.boxes, ctx.shape = boxes, features.shape
        return torch.ops.torchvision.roi_align(features, boxes, 0.25, 7, 7, 2, False)
    @staticmethod
    def backward(ctx, gradient):
        pooled = torch.ops.torchvision._roi_align_backward(gradient, ctx.boxes, 0.25, 7, 7, *ctx.shape, 2, False)
        return pooled, None
features = torch.empty(2, 256, 64, 64, device="cuda", requires_grad=True)
boxes, scores = torch.empty(1000, 4, device="cuda"), torch.empty(1000, device="cuda")
kept = torch.ops.torchvision.nms(boxes, scores, 0.7)
rois = torch.cat([torch.zeros(1000, 1, device="cuda"), boxes], 1)[kept]
pooled = Pool.apply(features, rois)
pooled.sum().backward()
levels = torchvision.ops.poolers.LevelMapper(2, 5)([boxes])
sampler = torchvision.models.detection._utils.BalancedPositiveNegativeSampler(256, 0.25)
sampled = [int(masks[0].sum()) for masks in sampler([scores])]
found = len(kept), list(pooled.shape), list(features.grad.shape), levels.bincount().tolist(), sampled
open("found", "w").write(str(found))
"""
FAKE_TORCHVISION = {
    "__init__": "import torch\nfrom torchvision import models, ops\ntorch.ops.load_library('/missing/_C.so')\n",
    "models/__init__": "from torchvision.models import detection\n",
    "models/detection/__init__": "from torchvision.models.detection import _utils\n",
    "models/detection/_utils": "class BalancedPositiveNegativeSampler:\n    def __init__(self, count, share):\n"
    "        self.batch_size_per_image, self.positive_fraction = count, share\n",
    "ops/__init__": "from torchvision.ops import poolers\n",
    "ops/poolers": "class LevelMapper:\n    def __init__(self, k_min, k_max):\n"
    "        self.k_min, self.k_max = k_min, k_max\n",
}
META = """
library = torch.library.Library("torchvision", "IMPL", "Meta")
library.impl("roi_align", lambda x, rois, scale, h, w, ratio, aligned: x.new_empty(len(rois), x.shape[1], h, w))
library.impl("_roi_align_backward", lambda x, rois, scale, h, w, *shape: x.new_empty(shape[:4]))
"""


def test_kernels_of_torchvision_give_results_of_the_right_shapes_without_its_compiled_library(traced, tmp_path):
    for name, source in FAKE_TORCHVISION.items():
        file = tmp_path / "torchvision" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source + (META if name == "__init__" else ""))
    traced(DETECTION)
    assert (tmp_path / "found").read_text() == str((1000, [1000, 256, 7, 7], [2, 256, 64, 64], [1000], [64, 192]))
