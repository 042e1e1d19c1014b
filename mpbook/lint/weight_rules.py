"""Rules about what is stored in 16 bits: weights, averages, counters, positions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from mpbook.lint.dtypes import is_factory
from mpbook.lint.module import Module, keyword, number
from mpbook.lint.recognise import Code
from mpbook.lint.rule import Rule

_MASTER = "recipe/master_weights_traps#"
_ADAMS = {"Adam", "AdamW", "NAdam", "RAdam", "Adamax"}
_TRAINERS = {"Trainer", "SFTTrainer", "Seq2SeqTrainer", "DPOTrainer", "Accelerator"}
_POSITION = re.compile(r"(^|[._])(position(_id)?s?|pos_ids|time_?steps?|timestamps?|token_ids)$")
_AVERAGE = re.compile(r"(^|[._])(ema|averaged?|avg|shadow)(_|$)|_(ema|avg)$", re.IGNORECASE)
_EXACT = {"bfloat16": 256.0, "float16": 2048.0}
"""Up to here a format holds every integer."""


def _adam(code: Code) -> Iterator[ast.expr]:
    for call, _, dtype in code.half_models():
        if dtype == "float16" and code.optimizer(call) in _ADAMS:
            eps = number(keyword(call, "eps"))
            fused = keyword(call, "fused")
            if fused is None and (eps is None or eps < 2**-24):
                yield call


def _no_master(code: Code) -> Iterator[ast.expr]:
    adams = set(_adam(code))
    yield from (call for call, _, _ in code.half_models() if call not in adams)


def _loaded(code: Code) -> Iterator[ast.expr]:
    """``from_pretrained`` in 16 bits whose model goes to a trainer or an optimizer."""
    module = code.module
    for call in module.calls():
        if not isinstance(call.func, ast.Attribute) or call.func.attr != "from_pretrained":
            continue
        dtype = keyword(call, "dtype") or keyword(call, "torch_dtype")
        if not code.dtypes.named(dtype) or keyword(call, "quantization_config"):
            continue
        target = next(module.parents(call), None)
        if isinstance(target, ast.Assign) and _is_trained(code, module.name(target.targets[0])):
            yield call


def _is_trained(code: Code, name: str) -> bool:
    module = code.module
    if not name or any("get_peft_model" in ast.dump(v) for v in module.values(name)):
        return False
    for call in module.calls():
        last = module.name(call.func).split(".")[-1]
        if last in _TRAINERS:
            if keyword(call, "peft_config"):
                return False
            given = [*call.args, *(k.value for k in call.keywords)]
            if any(module.name(value) == name for value in given):
                return True
        models = code.trained(call) if code.optimizer(call) else []
        if any(module.name(model) == name for model in models):
            return True
    return False


def _average(code: Code) -> Iterator[ast.expr]:
    """A cast of something named ``ema`` to 16 bits, where something is averaged."""
    module = code.module
    moves = {"lerp_", "mul_", "update_parameters", "lerp", "_foreach_lerp_", "add_"}
    averaged = any(module.attribute(call) in moves for call in module.calls())
    for call in module.calls():
        if averaged and code.dtypes.cast(call) and isinstance(call.func, ast.Attribute):
            names = [module.name(call.func.value), *_targets(module, call)]
            if any(_AVERAGE.search(name) for name in names):
                yield call


def _targets(module: Module, call: ast.AST) -> list[str]:
    for parent in module.parents(call):
        if isinstance(parent, ast.Assign):
            return [module.name(target) for target in parent.targets]
        if isinstance(parent, ast.stmt):
            return []
    return []


def _counter(code: Code) -> Iterator[ast.stmt]:
    """``total += ...`` in a loop, on a tensor that was made in 16 bits outside of it."""
    module = code.module
    for node in module.nodes:
        target = _added_to(module, node)
        if target is not None and isinstance(node, ast.stmt):
            name, loop = module.name(target), module.loop(node)
            given = module.assigned(name, at=node) if name else None
            if loop is None or not isinstance(given, ast.Call) or _outside(module, given, loop):
                continue
            made = is_factory(module.name(given.func)) or code.dtypes.cast(given)
            if made and code.dtypes.of(given):
                yield node


def _added_to(module: Module, node: ast.AST) -> ast.expr | None:
    """``total`` of ``total += x`` and of ``total = total + x``."""
    match node:
        case ast.AugAssign(target=target, op=ast.Add()):
            return target
        case ast.Assign(targets=[target], value=ast.BinOp(left=left, op=ast.Add())):
            name = module.name(target)
            return target if name and name == module.name(left) else None
    return None


def _outside(module: Module, node: ast.AST, loop: ast.AST) -> bool:
    """Whether a node runs anew at each turn of a loop, so that it starts again."""
    return any(parent is loop for parent in module.parents(node))


def _positions(code: Code) -> Iterator[ast.expr]:
    module = code.module
    for call in module.calls():
        if module.name(call.func) in ("torch.arange", "torch.linspace"):
            dtype = code.dtypes.named(keyword(call, "dtype"))
            if dtype and not _fits(call, dtype):
                yield call
        cast = code.dtypes.cast(call)
        if cast and isinstance(call.func, ast.Attribute):
            made = _origin(module, call.func.value)
            counted = isinstance(made, ast.Call) and module.name(made.func) == "torch.arange"
            if isinstance(made, ast.Call) and counted:
                if not _fits(made, cast):
                    yield call
            elif _POSITION.search(module.name(call.func.value)):
                yield call


def _origin(module: Module, node: ast.expr) -> ast.expr | None:
    name = module.name(node)
    given = module.assigned(name, at=node) if name else node
    if isinstance(given, ast.Subscript):
        given = given.value
    return given


def _fits(call: ast.Call, dtype: str) -> bool:
    """Whether every number that a range counts to is written out and exact."""
    numbers = [number(argument) for argument in call.args]
    return bool(numbers) and all(n is not None and abs(n) <= _EXACT[dtype] for n in numbers)


def _default_dtype(code: Code) -> Iterator[ast.expr]:
    """A 16-bit default in a file that trains, unless it is set back."""
    module = code.module
    calls = [c for c in module.calls() if module.name(c.func) == "torch.set_default_dtype"]
    narrow = [c for c in calls if c.args and code.dtypes.named(c.args[0])]
    trains = any(code.backwards()) or any(code.optimizer(c) for c in module.calls())
    if trains and len(narrow) == len(calls):
        yield from narrow


def _to_numpy(code: Code) -> Iterator[ast.expr]:
    for call in code.module.calls():
        if isinstance(call.func, ast.Attribute) and call.func.attr == "numpy":
            narrow = code.dtypes.of(call.func.value) == "bfloat16"
            yield from [call] if narrow else []


_STEP = "optimizer = torch.optim.{}(model.parameters(), lr=1e-4)\n"

RULES = (
    Rule(
        "adam-on-float16",
        "Adam over a model that was cast to float16",
        "eps=1e-8 is 0 in float16, so the first step gives NaN; keep the parameters in float32",
        _MASTER + "mw-adam-nan",
        "import torch\n\nmodel.half()\n" + _STEP.format("AdamW"),
        "import torch\n\n" + _STEP.format("AdamW"),
        _adam,
    ),
    Rule(
        "no-master-weights",
        "an optimizer over a model that was cast to 16 bits",
        "updates below half a gap of a 16-bit weight are lost; keep the parameters in float32, "
        "and use autocast",
        "recipe/master_weights#mw-why",
        "import torch\n\nmodel = model.to(torch.bfloat16)\n" + _STEP.format("AdamW"),
        'import torch\n\nmodel = model.to("cuda")\n' + _STEP.format("AdamW"),
        _no_master,
    ),
    Rule(
        "trained-as-loaded",
        "`from_pretrained(..., dtype=<16 bits>)`, then trained",
        "trains 16-bit weights, which lose small updates; load in float32 and set bf16=True",
        "reference/frameworks#fw-nothing-learned",
        "import torch\nfrom transformers import AutoModel, Trainer\n\n"
        "model = AutoModel.from_pretrained(name, dtype=torch.bfloat16)\nTrainer(model=model)\n",
        "import torch\nfrom transformers import AutoModel, Trainer\n\n"
        "model = AutoModel.from_pretrained(name, dtype=torch.float32)\nTrainer(model=model)\n",
        _loaded,
    ),
    Rule(
        "average-in-16-bits",
        "an EMA of the weights, cast to 16 bits",
        "moves by less than half a gap, so it stands still; keep the average in float32",
        _MASTER + "mw-ema",
        "import copy\n\nema = copy.deepcopy(model).bfloat16()\n"
        "for a, p in zip(ema.parameters(), model.parameters()):\n    a.lerp_(p, 0.001)\n",
        "import copy\n\nema = copy.deepcopy(model).float()\n"
        "for a, p in zip(ema.parameters(), model.parameters()):\n    a.lerp_(p.float(), 0.001)\n",
        _average,
    ),
    Rule(
        "counter-in-16-bits",
        "`+=` in a loop on a 16-bit tensor",
        "stands still once the sum is large: a bfloat16 count at 256, a float16 one at 2048; "
        "sum in float32",
        "numbers/rounding_and_sums_traps#sums-counter",
        "import torch\n\nhits = torch.zeros((), dtype=torch.bfloat16)\n"
        "for x in loader:\n    hits += f(x)\n",
        "import torch\n\nhits = torch.zeros((), dtype=torch.float32)\n"
        "for x in loader:\n    hits += f(x)\n",
        _counter,
    ),
    Rule(
        "positions-in-16-bits",
        "`arange`, positions or timesteps in 16 bits",
        "positions collide: above 256 bfloat16 skips integers, above 2048 float16 does; "
        "count in float32 and cast the sines",
        "formats_that_need_less/bf16_traps#bf16-rope",
        "import torch\n\nangles = torch.arange(length).to(torch.bfloat16)[:, None] * frequencies\n",
        "import torch\n\nangles = torch.arange(length).float()[:, None] * frequencies\n",
        _positions,
    ),
    Rule(
        "default-dtype-in-16-bits",
        "`torch.set_default_dtype` to 16 bits, in a file that trains",
        "makes weights, counters and the optimizer's scalars 16-bit; keep float32 and use autocast",
        "formats_that_need_less/bf16_traps#bf16-warm-up",
        "import torch\n\ntorch.set_default_dtype(torch.bfloat16)\n" + _STEP.format("AdamW"),
        "import torch\n\n" + _STEP.format("AdamW"),
        _default_dtype,
    ),
    Rule(
        "bfloat16-to-numpy",
        "`.numpy()` of a bfloat16 tensor",
        "raises a TypeError, since NumPy has no bfloat16; write .float().numpy()",
        "numbers/precision_formats_traps#formats-numpy",
        "import torch\n\narray = x.to(torch.bfloat16).cpu().numpy()\n",
        "import torch\n\narray = x.to(torch.bfloat16).float().cpu().numpy()\n",
        _to_numpy,
    ),
)
