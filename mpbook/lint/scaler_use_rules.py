"""Rules about the `GradScaler` itself: where it is made, kept, and not wanted."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from mpbook.lint.module import keyword, number
from mpbook.lint.recognise import Code
from mpbook.lint.rule import Rule
from mpbook.lint.scaler_order_rules import GOOD

_TRAPS = "recipe/loss_scaling_traps#"
_ONE_CALL = re.compile(r"^(?!test)\w*(train|step|epoch|batch)\w*$")


def _new_each_time(code: Code) -> Iterator[ast.expr]:
    """A scaler made in the loop that scales by it, or in a function that is called each epoch."""
    for call in code.new_scalers:
        scope, loop = code.module.scope(call), code.module.loop(call)
        used = [s for s in code.scaler_calls("scale") if code.module.scope(s) is scope]
        if loop is not None:
            again = any(code.module.loop(s) is loop for s in used)
            if again or (used and _is_of_epochs(loop)):
                yield call
        elif loop is None and used and isinstance(scope, ast.FunctionDef):
            repeated = re.search(r"(_|^)(epoch|step|batch|iteration)$", scope.name)
            if repeated and _ONE_CALL.match(scope.name):
                yield call


def _is_of_epochs(loop: ast.AST) -> bool:
    return isinstance(loop, ast.For) and "epoch" in ast.unparse(loop.target).lower()


def _not_saved(code: Code) -> Iterator[ast.expr]:
    if code.scaler_calls("state_dict"):
        return
    for call in code.module.calls():
        saves = code.module.name(call.func) == "torch.save" and call.args
        if saves and any(_belong_together(code, made, call) for made in code.new_scalers):
            name = code.module.name(call.args[0])
            given = code.module.assigned(name, at=call) if name else None
            saved = ast.dump(given if given is not None else call.args[0])
            if "state_dict" in saved and re.search(r"opti\w*'", saved) and "scaler" not in saved:
                yield call


def _belong_together(code: Code, made: ast.Call, saved: ast.Call) -> bool:
    """Whether a checkpoint is written by the function that made a scaler, or called from it."""
    maker, writer = code.module.functions(made)[-1:], code.module.functions(saved)[-1:]
    if not maker or maker == writer:
        return True
    body = list(ast.walk(maker[0]))
    called = [code.module.attribute(n) for n in body if isinstance(n, ast.Call)]
    of_self = "self." in ast.unparse(next(code.module.parents(made), made))
    return bool(writer) and (writer[0].name in called or of_self)


def _no_scaler(code: Code) -> Iterator[ast.expr]:
    """A float16 region and a backward after it, in a file that knows no scaler at all."""
    known = any("scale" in word.lower() for word in _identifiers(code))
    for region in code.regions:
        if known or region.dtype != "float16" or region.turned_off:
            continue
        for call in code.backwards():
            if code.module.scope(call) is code.module.scope(region.body[0]):
                yield region.call
                break


def _identifiers(code: Code) -> Iterator[str]:
    for node in code.module.nodes:
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name


def _position(code: Code) -> Iterator[ast.expr]:
    for call in code.new_scalers:
        old = ".cuda.amp." in code.module.name(call.func)
        if not old and call.args and number(call.args[0]) is not None:
            yield call


def _bfloat16(code: Code) -> Iterator[ast.expr]:
    on = [region for region in code.regions if not region.turned_off]
    if on and all(region.dtype == "bfloat16" for region in on):
        yield from (call for call in code.new_scalers if keyword(call, "enabled") is None)


def _float16_gradients(code: Code) -> Iterator[ast.expr]:
    for call, _, dtype in code.half_models():
        used = [*code.scaler_calls("unscale_"), *code.scaler_calls("step")]
        if dtype == "float16" and any(
            code.module.scope(s) is code.module.scope(call) for s in used
        ):
            yield call


RULES = (
    Rule(
        "scaler-made-again",
        "a `GradScaler` made in the loop that scales by it, or each epoch",
        "starts at 65536 each time and forgets what it learnt; make one for the whole run",
        _TRAPS + "ls-save",
        "import torch\n\nfor x in loader:\n"
        '    scaler = torch.amp.GradScaler("cuda")\n'
        "    scaler.scale(model(x)).backward()\n    scaler.step(optimizer)\n    scaler.update()\n",
        GOOD,
        _new_each_time,
    ),
    Rule(
        "scaler-not-saved",
        "a checkpoint with the optimizer's state and without the scaler's",
        "a resumed run starts at a scale of 65536 again; save scaler.state_dict() too",
        _TRAPS + "ls-save",
        GOOD + 'torch.save({"optimizer": optimizer.state_dict()}, path)\n',
        GOOD + 'torch.save({"optimizer": optimizer.state_dict(),'
        ' "scaler": scaler.state_dict()}, path)\n',
        _not_saved,
    ),
    Rule(
        "scale-for-a-device",
        "a number as the first argument of `torch.amp.GradScaler`",
        "is taken for the device, and the scale starts at 65536; write init_scale=",
        "recipe/autocast_traps#torch-cuda-amp",
        "import torch\n\nscaler = torch.amp.GradScaler(1024.0)\n",
        'import torch\n\nscaler = torch.amp.GradScaler("cuda", init_scale=1024.0)\n',
        _position,
    ),
    Rule(
        "bfloat16-with-scaler",
        "a `GradScaler` where every autocast region is bfloat16",
        "bfloat16 needs no loss scale, and skipped steps hide a broken run; "
        "write enabled=dtype == torch.float16",
        _TRAPS + "ls-bf16",
        'import torch\n\nscaler = torch.amp.GradScaler("cuda")\n'
        'with torch.autocast("cuda", dtype=torch.bfloat16):\n    loss = model(x)\n',
        'import torch\n\nscaler = torch.amp.GradScaler("cuda", enabled=False)\n'
        'with torch.autocast("cuda", dtype=torch.bfloat16):\n    loss = model(x)\n',
        _bfloat16,
    ),
    Rule(
        "float16-without-scaler",
        "a float16 autocast region and `backward()`, and no scaler",
        "gradients below 3e-8 become 0, without a word; take a GradScaler, or bfloat16",
        "recipe/loss_scaling#ls-floor",
        'import torch\n\nwith torch.autocast("cuda"):\n    loss = model(x)\nloss.backward()\n',
        'import torch\n\nwith torch.autocast("cuda", dtype=torch.bfloat16):\n'
        "    loss = model(x)\nloss.backward()\n",
        _no_scaler,
    ),
    Rule(
        "float16-gradients",
        "a scaler's step for a model that was cast to float16",
        'raises "Attempting to unscale FP16 gradients"; keep the parameters in float32',
        _TRAPS + "ls-fp16-gradients",
        "import torch\n\nmodel = model.half()\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n" + GOOD,
        "import torch\n\noptimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n" + GOOD,
        _float16_gradients,
    ),
)
