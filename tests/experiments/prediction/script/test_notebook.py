"""Magics and other features of Jupyter in notebooks that `testbed predict` runs."""

import nbformat
import pytest

from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.trace import ScriptFailed, trace_script

CARD = ["a100_80gb"]
TRAIN = """
import torch
model = torch.nn.Linear(64, 64).cuda()
optimizer = torch.optim.SGD(model.parameters())
for _ in range(100):
    model(torch.zeros(8, 64, device="cuda")).sum().backward()
    optimizer.step()
"""
FEATURES = r"""
%matplotlib inline
%config InlineBackend.figure_format = 'retina'
%config InteractiveShell.ast_node_interactivity = 'all'
%matplotlib notebook
%matplotlib widget
%matplotlib qt
%matplotlib agg
%matplotlib
%pylab inline
%gui
%gui qt
%pip --version
%load_ext tensorboard
%reload_ext tensorboard
%tensorboard --logdir runs
%load_ext autoreload
%autoreload 2
%store
%env NAME=value
%time None
%%bash\ntrue
%%html\n<b>text</b>
%%javascript\nalert(1)
%%capture output\nprint(1)
%clear
display(1)
from IPython.display import HTML, clear_output; display(HTML("text")); clear_output(wait=True)
from tqdm.notebook import tqdm; assert list(tqdm(range(2))) == [0, 1]
from tqdm.auto import trange; assert list(trange(2)) == [0, 1]
import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()
import asyncio; await asyncio.sleep(0)
get_ipython().run_line_magic("matplotlib", "inline")
get_ipython().system("true")
print(In[1], Out)
""".strip().splitlines()


@pytest.fixture
def trace_cells(trace, tmp_path):
    """Return a function that predicts a notebook with these cells."""

    def trace_cells(*cells):
        written = [nbformat.v4.new_code_cell(cell.replace("\\n", "\n")) for cell in cells]
        nbformat.write(nbformat.v4.new_notebook(cells=written), tmp_path / "lab.ipynb")
        (found,) = trace_script(["lab.ipynb"], CARD, lambda _: None, ScriptOptions())
        return found

    return trace_cells


def test_what_jupyter_shows_does_not_end_the_prediction(trace_cells):
    assert trace_cells(*FEATURES, TRAIN).steps == 2


@pytest.mark.parametrize("end", ["exit()", "quit"])
def test_a_cell_that_ends_the_kernel_ends_the_notebook(trace_cells, end):
    found = trace_cells(TRAIN.replace("100", "1"), end, "raise ValueError")
    assert (found.steps, found.ended) == (1, "ended")


@pytest.mark.parametrize("question", ["input('name: ')", "import getpass; getpass.getpass()"])
def test_a_question_to_the_user_is_named_as_missing(trace_cells, question):
    with pytest.raises(ScriptFailed, match=r"missing: an answer to a question \(input or getpass\)"):
        trace_cells(question, TRAIN)
