"""Rules about autocast: where its region begins and ends, and what does not belong into it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from mpbook.lint.module import Module, keyword
from mpbook.lint.recognise import Code, Region
from mpbook.lint.rule import Rule

_TRAPS = "recipe/autocast_traps#"
_OLD = {"torch.cuda.amp", "torch.cpu.amp"}
_OLD_NAMES = {"autocast", "GradScaler", "custom_fwd", "custom_bwd"}
_OLD_FUNCTIONS = {
    *("torch.get_autocast_gpu_dtype", "torch.get_autocast_cpu_dtype"),
    *("torch.is_autocast_cpu_enabled", "torch.set_autocast_gpu_dtype"),
}
_WITHOUT = ("ImportError", "AttributeError", "ModuleNotFoundError", "TypeError")
_ASKS_VERSION = re.compile(r"version|hasattr|torch_greater|torch_\d", re.IGNORECASE)
_BCE = {"torch.nn.functional.binary_cross_entropy", "F.binary_cross_entropy"}
_BCE_MODULES = {"torch.nn.BCELoss", "nn.BCELoss"}
_TRANSFORMS = {
    f"torch.fft.{i}{r}fft{n}" for i in ("", "i") for r in ("", "r", "h") for n in ("", "2", "n")
}
_BATCH_NORMS = {f"BatchNorm{n}d" for n in (1, 2, 3)} | {"SyncBatchNorm"}


def _deprecated(code: Code) -> Iterator[ast.expr | ast.stmt]:
    module = code.module
    for node in module.nodes:
        if isinstance(node, ast.ImportFrom):
            old = node.module in _OLD and not node.level
        else:
            old = isinstance(node, ast.Attribute) and _is_old(module.name(node))
        if old and isinstance(node, ast.expr | ast.stmt) and not _is_for_old_torch(module, node):
            yield node


def _is_old(name: str) -> bool:
    owner, _, last = name.rpartition(".")
    return name in _OLD_FUNCTIONS or (owner in _OLD and last in _OLD_NAMES)


def _is_for_old_torch(module: Module, node: ast.AST) -> bool:
    """Whether a node stands in a branch for a release that has nothing newer."""
    for branch in module.guards(node):
        if isinstance(branch, ast.Try):
            caught = " ".join(ast.unparse(h.type) for h in branch.handlers if h.type)
            if any(error in caught for error in _WITHOUT):
                return True
        elif isinstance(branch, ast.If | ast.IfExp) and _ASKS_VERSION.search(
            ast.unparse(branch.test)
        ):
            return True
    return False


def _device_type(code: Code) -> Iterator[ast.expr]:
    """The old autocast, which has the device in its name, given one."""
    module = code.module
    for call in module.calls():
        if module.name(call.func) in ("torch.cuda.amp.autocast", "torch.cpu.amp.autocast"):
            first = call.args[0] if call.args else None
            text = isinstance(first, ast.Constant) and isinstance(first.value, str)
            if text or keyword(call, "device_type"):
                yield call


def _no_device(code: Code) -> Iterator[ast.expr]:
    """The new autocast without a device, or with ``enabled`` in its place."""
    module = code.module
    for call in module.calls():
        if module.name(call.func) not in ("torch.autocast", "torch.amp.autocast"):
            continue
        if any(k.arg is None for k in call.keywords) or keyword(call, "device_type"):
            continue
        first = call.args[0] if call.args else None
        wrong = isinstance(first, ast.Constant) and not isinstance(first.value, str)
        if first is None or wrong:
            yield call


def _loop_in_region(region: Region) -> bool:
    """Whether a whole training loop runs in a region: steps of an optimizer in a ``for``."""
    loops = [
        node
        for statement in region.body
        for node in ast.walk(statement)
        if isinstance(node, ast.For | ast.While)
    ]
    called = [
        node.func.attr
        for loop in loops
        for node in ast.walk(loop)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    return "backward" in called and "step" in called


def _around_loop(code: Code) -> Iterator[ast.expr]:
    for region in code.regions:
        if not region.turned_off and _loop_in_region(region):
            yield region.call


def _backward(code: Code) -> Iterator[ast.expr]:
    for call in code.backwards():
        region = code.in_autocast(call)
        if region is not None and not _loop_in_region(region):
            yield call


def _bce(code: Code) -> Iterator[ast.expr]:
    module = code.module
    for call in module.calls():
        region = code.in_autocast(call)
        if region is None or region.device == "cpu":
            continue
        name = module.name(call.func)
        made = module.values(name) if name else []
        classes = [module.name(v.func) for v in made if isinstance(v, ast.Call)]
        direct = isinstance(call.func, ast.Call) and module.name(call.func.func) in _BCE_MODULES
        if name in _BCE or direct or any(c in _BCE_MODULES for c in classes):
            yield call


def _cast_model(code: Code) -> Iterator[ast.expr]:
    """A 16-bit model that is called in a region, in a file that trains."""
    module = code.module
    if not any(code.backwards()):
        return
    for call in module.calls():
        region = code.in_autocast(call)
        if region is None or not isinstance(call.func, ast.Name | ast.Attribute):
            continue
        if code.dtypes.of(call.func) and module.name(call.func):
            yield call


def _batch_norms(code: Code) -> Iterator[ast.expr]:
    """Casts of a model with BatchNorm to 16 bits, unless the norms are put back."""
    module = code.module
    if any("BatchNorm" in ast.dump(n) for n in module.nodes if _is_instance_check(n)):
        return
    with_norm = {
        node.name
        for node in module.nodes
        if isinstance(node, ast.ClassDef) and _makes_batch_norm(module, node)
    }
    for call in module.calls():
        if code.dtypes.cast(call) and isinstance(call.func, ast.Attribute):
            owner = call.func.value
            name = module.name(owner)
            made = [owner, *(module.values(name) if name else [])]
            if any(_holds(module, value, with_norm) for value in made):
                yield call


def _is_instance_check(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "type")


def _makes_batch_norm(module: Module, node: ast.AST) -> bool:
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call)]
    return any(module.name(c.func).split(".")[-1] in _BATCH_NORMS for c in calls)


def _holds(module: Module, value: ast.expr, classes: set[str]) -> bool:
    if _makes_batch_norm(module, value):
        return True
    calls = [n for n in ast.walk(value) if isinstance(n, ast.Call)]
    return any(module.name(c.func) in classes for c in calls)


def _emulated(code: Code) -> Iterator[ast.expr]:
    module = code.module
    for call in module.calls():
        asked = module.name(call.func) == "torch.cuda.is_bf16_supported"
        if asked and not call.args and not keyword(call, "including_emulation"):
            yield call


def _fft(code: Code) -> Iterator[ast.expr]:
    module = code.module
    for call in module.calls():
        if module.name(call.func) not in _TRANSFORMS or not call.args:
            continue
        if code.dtypes.of(call.args[0]) or _product_in_region(code, call):
            yield call


def _product_in_region(code: Code, call: ast.Call) -> bool:
    """Whether the argument is what a layer or a product returned in the same region."""
    module = code.module
    region = code.in_autocast(call)
    if region is None:
        return False
    given: ast.expr | None = call.args[0]
    if isinstance(given, ast.Name):
        given = module.assigned(module.name(given), at=call)
        if given is None or code.in_autocast(given) is not region:
            return False
    match given:
        case ast.BinOp(op=ast.MatMult()):
            return True
        case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=layer)):
            return any(word in layer for word in ("conv", "linear", "proj", "fc", "layer"))
        case ast.Call(func=function):
            made = [v for v in module.values(module.name(function)) if isinstance(v, ast.Call)]
            return any(
                module.name(v.func).split(".")[-1].startswith(("Linear", "Conv")) for v in made
            )
    return False


RULES = (
    Rule(
        "deprecated-amp",
        "`torch.cuda.amp`, `torch.cpu.amp` and their relatives",
        'is deprecated, and the order of the arguments changed; write torch.amp.autocast("cuda")',
        _TRAPS + "torch-cuda-amp",
        "from torch.cuda.amp import GradScaler\n",
        "from torch.amp import GradScaler\n",
        _deprecated,
    ),
    Rule(
        "device-for-old-autocast",
        "`torch.cuda.amp.autocast` with a device",
        'takes no device, so this fails; write torch.autocast("cuda")',
        "reference/claims#claim-cuda-amp-autocast-takes-a-device-type",
        "from torch.cuda.amp import autocast\n\nwith autocast(device_type='cuda'):\n    y = f(x)\n",
        "import torch\n\nwith torch.autocast(device_type='cuda'):\n    y = f(x)\n",
        _device_type,
    ),
    Rule(
        "autocast-without-device",
        "`torch.autocast` without a device as its first argument",
        'raises: the device comes first; write torch.autocast("cuda", dtype=...)',
        _TRAPS + "torch-cuda-amp",
        "import torch\n\nwith torch.amp.autocast(True):\n    y = f(x)\n",
        'import torch\n\nwith torch.amp.autocast("cuda", enabled=True):\n    y = f(x)\n',
        _no_device,
    ),
    Rule(
        "autocast-around-loop",
        "one autocast region around a whole training loop",
        "casts of the weights are cached until the region ends, so the weights seem to stand "
        "still; open it for each forward pass",
        "recipe/autocast#autocast-region-around-loop",
        'import torch\n\nwith torch.autocast("cuda", dtype=torch.bfloat16):\n    for x in loader:\n'
        "        model(x).backward()\n        optimizer.step()\n",
        "import torch\n\nfor x in loader:\n"
        '    with torch.autocast("cuda", dtype=torch.bfloat16):\n'
        "        loss = model(x)\n    loss.backward()\n    optimizer.step()\n",
        _around_loop,
    ),
    Rule(
        "backward-in-autocast",
        "`backward()` inside an autocast region",
        "casts the products of the backward pass again, float32 islands included; "
        "end the region first",
        _TRAPS + "autocast-backward-inside",
        'import torch\n\nwith torch.autocast("cuda", dtype=torch.bfloat16):\n'
        "    loss = model(x)\n    loss.backward()\n",
        'import torch\n\nwith torch.autocast("cuda", dtype=torch.bfloat16):\n'
        "    loss = model(x)\nloss.backward()\n",
        _backward,
    ),
    Rule(
        "bce-in-autocast",
        "`BCELoss` or `binary_cross_entropy` in an autocast region",
        "raises on CUDA, and a 16-bit sigmoid is 1 from about 6 on; "
        "give binary_cross_entropy_with_logits the logits",
        _TRAPS + "autocast-bceloss",
        "import torch\nfrom torch import nn\n\ncriterion = nn.BCELoss()\n"
        'with torch.autocast("cuda"):\n    loss = criterion(model(x), y)\n',
        "import torch\nfrom torch import nn\n\ncriterion = nn.BCEWithLogitsLoss()\n"
        'with torch.autocast("cuda"):\n    loss = criterion(model(x), y)\n',
        _bce,
    ),
    Rule(
        "cast-model-in-autocast",
        "a model that was cast to 16 bits, trained under autocast",
        "leaves autocast nothing to do and trains 16-bit weights, which lose small updates; "
        "leave out the cast",
        _TRAPS + "autocast-bfloat16-model",
        "import torch\n\nmodel = model.bfloat16()\n"
        'with torch.autocast("cuda", dtype=torch.bfloat16):\n'
        "    loss = model(x)\nloss.backward()\n",
        'import torch\n\nwith torch.autocast("cuda", dtype=torch.bfloat16):\n'
        "    loss = model(x)\nloss.backward()\n",
        _cast_model,
    ),
    Rule(
        "batch-norm-in-16-bits",
        "a model with BatchNorm, cast to 16 bits",
        "rounds the running statistics, which stall; put the BatchNorms back with .float()",
        "formats_that_need_less/bf16_traps#bf16-batchnorm",
        "from torch import nn\n\n"
        "model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))\nmodel.bfloat16()\n",
        "from torch import nn\n\n"
        "model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))\nmodel.bfloat16()\n"
        "for module in model.modules():\n"
        "    if isinstance(module, nn.BatchNorm2d):\n        module.float()\n",
        _batch_norms,
    ),
    Rule(
        "emulated-bfloat16",
        "`torch.cuda.is_bf16_supported()`",
        "is True on a T4 and a V100, which only emulate it; give including_emulation=False",
        "formats_that_need_less/bf16_traps#bf16-supported",
        "import torch\n\nnative = torch.cuda.is_bf16_supported()\n",
        "import torch\n\nnative = torch.cuda.is_bf16_supported(including_emulation=False)\n",
        _emulated,
    ),
    Rule(
        "fft-in-16-bits",
        "`torch.fft` of a 16-bit tensor",
        "no list of autocast has it, and in half it takes powers of two or nothing; "
        "give it .float()",
        "practice/own_model_traps#own-fft",
        "import torch\n\ny = torch.fft.rfft(x.half())\n",
        "import torch\n\ny = torch.fft.rfft(x.float())\n",
        _fft,
    ),
)
