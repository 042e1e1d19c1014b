"""Each rule: it finds its bad example, leaves the good one, and points into the book."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from visits import ROOT

from mpbook.lint import RULES, Rule, lint_text, table

rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def ids(text: str) -> list[str]:
    return [finding.id for finding in lint_text(text)]


@rules
def test_a_rule_finds_its_bad_example(rule: Rule) -> None:
    assert rule.id in ids(rule.bad)


@rules
def test_no_rule_finds_anything_in_the_good_example(rule: Rule) -> None:
    assert ids(rule.good) == []


@rules
def test_a_reason_is_one_sentence_that_says_what_to_write(rule: Rule) -> None:
    assert rule.reason[0].islower() or rule.reason[0] in "-0123456789A`"
    assert not rule.reason.endswith(".") and ". " not in rule.reason
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", rule.id)


def pages_source(page: str) -> str:
    """The Markdown of a page of the book."""
    notebook = ROOT / "book" / f"{page}.ipynb"
    if not notebook.exists():
        return (ROOT / "book" / f"{page}.md").read_text("utf-8")
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


@rules
def test_the_section_of_a_rule_exists(rule: Rule) -> None:
    page, target = rule.section.split("#")
    assert re.search(rf"^\({re.escape(target)}\)=$", pages_source(page), re.MULTILINE)


def test_the_table_names_every_rule() -> None:
    lines = table().splitlines()
    assert [line.split()[0] for line in lines] == list(RULES)
    assert len(RULES) >= 20


FOUND = {
    "clip under another name": (
        "clip-before-unscale",
        """
from torch.cuda import amp
class Trainer:
    def __init__(self):
        self.grad_scaler = amp.GradScaler()
    def step(self, loss):
        self.grad_scaler.scale(loss).backward()
        clip_grad_norm_(self.model.parameters(), 1.0)
        self.grad_scaler.unscale_(self.optimizer)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
""",
    ),
    "clip where accumulation ends": (
        "clip-without-unscale",
        """
def train(scaler):
    for i, x in enumerate(loader):
        scaler.scale(model(x)).backward()
        if (i + 1) % 4 == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
""",
    ),
    "the plain step after a scaled backward": (
        "step-around-scaler",
        """
for x in loader:
    loss = scaler.scale(model(x))
    loss.backward()
    opt.step()
""",
    ),
    "a model cast where it is made": (
        "adam-on-float16",
        "import torch.optim as optim\nnet = Net().cuda().half()\n"
        "opt = optim.Adam(net.parameters(), lr=1e-3)\n",
    ),
    "a dtype in a variable": (
        "no-master-weights",
        "import torch\ndtype = torch.bfloat16\nmodel = Net().to('cuda', dtype)\n"
        "params = [p for p in model.parameters() if p.requires_grad]\n"
        "opt = torch.optim.SGD(params, lr=0.1)\n",
    ),
    "a mask by index": (
        "mask-beyond-float16",
        "import torch\nscaler = torch.amp.GradScaler('cuda')\nscores[~mask] = -1e9\n",
    ),
    "a mask as GPT-2 wrote it": (
        "mask-beyond-float16",
        "model.half()\nw = w * b + -1e10 * (1 - b)\n",
    ),
    "a mask as the power of ten": (
        "mask-beyond-float16",
        "model.half()\nw = w.masked_fill(b, -10**9)\n",
    ),
    "eps in the signature": (
        "eps-vanishes",
        """
from torch import nn
class Norm(nn.Module):
    def __init__(self, eps=1e-8):
        self.eps = eps
    def forward(self, x):
        return x / (x.norm(dim=-1) + self.eps)
model = Norm()
model.half()
""",
    ),
    "normalize by its default": (
        "eps-vanishes",
        "import torch.nn.functional as F\nx = x.half()\ny = F.normalize(x, dim=-1)\n",
    ),
    "arange with a dtype": (
        "positions-in-16-bits",
        "import torch\np = torch.arange(0, n, dtype=torch.bfloat16)\n",
    ),
    "arange cast at once": (
        "positions-in-16-bits",
        "import torch\np = torch.arange(4096).half()\n",
    ),
    "timesteps by name": (
        "positions-in-16-bits",
        "import torch\nemb = embed(timesteps.to(torch.float16))\n",
    ),
    "a mask made before it is added": (
        "minimum-plus-score",
        "import torch\nmask = (1.0 - m) * torch.finfo(torch.float16).min\nscores = scores + mask\n",
    ),
    "the minimum added in place": (
        "minimum-plus-score",
        "import torch\nscores += (1.0 - m) * torch.finfo(scores.dtype).min\n",
    ),
    "the old module by its parts": (
        "deprecated-amp",
        "import torch\na = torch.cuda.amp.autocast()\n",
    ),
    "the old module by an alias": (
        "deprecated-amp",
        "import torch.cuda.amp as amp\nwith amp.autocast():\n    pass\n",
    ),
    "a decorated function": (
        "bce-in-autocast",
        "import torch\nimport torch.nn.functional as F\n@torch.autocast('cuda')\ndef f(p, y):\n"
        "    return F.binary_cross_entropy(p, y)\n",
    ),
    "a region in a variable": (
        "backward-in-autocast",
        "import torch\nctx = torch.autocast(device_type='cuda', dtype=torch.bfloat16)\n"
        "with ctx:\n    loss = model(x)\n    loss.backward()\n",
    ),
    "a class with BatchNorm": (
        "batch-norm-in-16-bits",
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        self.bn = nn.BatchNorm2d(3)\nnet = Net()\nnet.half()\n",
    ),
    "the norm of squares in a forward": (
        "squares-in-float16",
        """
from torch import nn
class Norm(nn.Module):
    def forward(self, x):
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()
model = Norm().half()
""",
    ),
    "a mask in a name": (
        "mask-beyond-float16",
        "import torch\nscaler = torch.amp.GradScaler('cuda')\nLOW = -1e9\n"
        "scores = scores.masked_fill(mask, LOW)\n",
    ),
    "the minimum in a name": (
        "minimum-plus-score",
        "import torch\nlow = torch.finfo(scores.dtype).min\nscores = scores + (1 - mask) * low\n",
    ),
    "a bias that is filled": (
        "minimum-plus-score",
        "import torch\nb = torch.zeros_like(s).masked_fill(m, torch.finfo(s.dtype).min)\n"
        "s = s + b\n",
    ),
    "an eps in a logarithm": (
        "eps-vanishes",
        "import torch\np = torch.softmax(logits.half(), -1)\nloss = -(p + 1e-10).log()\n",
    ),
    "a sum written out": (
        "counter-in-16-bits",
        "import torch\ntotal = torch.tensor(0.0, dtype=torch.bfloat16)\n"
        "for x in loader:\n    total = total + f(x)\n",
    ),
    "a scaler each epoch": (
        "scaler-made-again",
        "import torch\nfor epoch in range(9):\n    scaler = torch.amp.GradScaler('cuda')\n"
        "    for x in loader:\n        scaler.scale(model(x)).backward()\n",
    ),
    "a softmax with a temperature": (
        "softmax-by-hand",
        "import torch\ns = s.half()\ne = torch.exp(s / temperature)\np = e / e.sum(-1)\n",
    ),
    "loaded in half for an optimizer": (
        "trained-as-loaded",
        "import torch\nmodel = AutoModel.from_pretrained(n, torch_dtype=torch.float16)\n"
        "optimizer = torch.optim.AdamW(model.parameters())\n",
    ),
}


@pytest.mark.parametrize(("rule", "text"), FOUND.values(), ids=FOUND)
def test_a_pattern_is_found_as_others_write_it(rule: str, text: str) -> None:
    assert rule in ids(text)


LEFT = {
    "two arms of one switch": """
if use_amp:
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
else:
    loss.backward()
    clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
""",
    "an arm that returns": """
def step(scaler, loss):
    if scaler is not None:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return
    loss.backward()
    clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
""",
    "nanoGPT's switch": """
import torch
from contextlib import nullcontext
ptdtype = {'float32': torch.float32, 'float16': torch.float16}[dtype]
ctx = nullcontext() if cpu else torch.amp.autocast(device_type=device_type, dtype=ptdtype)
scaler = torch.amp.GradScaler('cuda', enabled=(dtype == 'float16'))
while True:
    with ctx:
        logits, loss = model(x, y)
    scaler.scale(loss).backward()
    if grad_clip != 0.0:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
""",
    "a GAN's two optimizers": """
scaler.scale(loss_d).backward()
scaler.unscale_(opt_d)
clip_grad_norm_(d.parameters(), 1.0)
scaler.step(opt_d)
scaler.scale(loss_g).backward()
scaler.unscale_(opt_g)
clip_grad_norm_(g.parameters(), 1.0)
scaler.step(opt_g)
scaler.update()
""",
    "a scaler of scikit-learn": """
from sklearn.preprocessing import StandardScaler
scaler = StandardScaler()
x = scaler.fit_transform(x)
loss.backward()
clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
""",
    "a mask of float32": "scores = scores.masked_fill(mask, -1e9)\n",
    "half for inference": "import torch\nmodel = Net().half().eval()\n"
    "with torch.no_grad():\n    y = model(x)\n",
    "master weights": "import torch\nmodel.bfloat16()\n"
    "optimizer = MasterWeights(torch.optim.AdamW(model.parameters()))\n",
    "back in float32": "import torch\nmodel.half()\nmodel.float()\n"
    "optimizer = torch.optim.Adam(model.parameters())\n",
    "a step that drops the cast": "x = x.half()\nx = x.float()\ny = x / (x.norm() + 1e-12)\n",
    "a short range": "import torch\nangle = torch.arange(64).to(torch.bfloat16)\n",
    "positions of integers": "import torch\nposition_ids = torch.arange(length, device=device)\n",
    "the old import as a last resort": "try:\n    from torch.amp import GradScaler\n"
    "except ImportError:\n    from torch.cuda.amp import GradScaler\n",
    "the new call with the old name": "from torch.amp import GradScaler, autocast\n"
    "scaler = GradScaler('cuda')\n",
    "LoRA on a 16-bit model": "import torch\nmodel = M.from_pretrained(n, dtype=torch.bfloat16)\n"
    "model = get_peft_model(model, config)\nTrainer(model=model)\n",
    "a part of a model in half": """
from torch import nn
class Norm(nn.Module):
    def forward(self, x):
        return x.pow(2).mean(-1)
class Net(nn.Module):
    def freeze(self):
        self.trunk.half()
""",
    "a choice of two": "import torch\ns = y * keep + (1 - keep) * torch.finfo(y.dtype).min\n",
    "a sweep over scales": """
import torch
for scale in (1.0, 1024.0):
    scaler = torch.amp.GradScaler("cuda", init_scale=scale)
    for x in loader:
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
""",
    "the engine's backward": "import torch\nwith torch.autocast('cuda'):\n    loss = model(x)\n"
    "accelerator.backward(loss)\n",
}


@pytest.mark.parametrize("text", LEFT.values(), ids=LEFT)
def test_sound_code_is_left_alone(text: str) -> None:
    assert ids(text) == []


def test_torchs_own_amp_and_optimizers_raise_no_false_alarm() -> None:
    import torch

    package = Path(torch.__file__).parent
    files = [*package.glob("amp/*.py"), *package.glob("optim/*.py"), *package.glob("nn/utils/*.py")]
    found = {i for file in files for i in ids(file.read_text("utf-8"))}
    assert found <= {"emulated-bfloat16", "deprecated-amp"}  # which are true
