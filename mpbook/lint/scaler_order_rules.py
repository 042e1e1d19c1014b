"""Rules about the order of the calls around a `GradScaler`."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from mpbook.lint.module import keyword
from mpbook.lint.recognise import Code, before, same
from mpbook.lint.rule import Rule

_TRAPS = "recipe/loss_scaling_traps#"


def _clips(code: Code) -> Iterator[ast.Call]:
    for call in code.module.calls():
        if code.module.name(call.func).split(".")[-1].startswith(("clip_grad_", "clip_grads_")):
            yield call


def _scaled(code: Code, call: ast.Call) -> bool:
    """Whether gradients are scaled when a call runs, as far as its own scope shows."""
    scaled = [*code.scaler_calls("scale"), *code.scaler_calls("step")]
    return any(code.module.whenever(s, call) for s in scaled)


def _clip_early(code: Code) -> Iterator[ast.expr]:
    together, unscales = code.module.together, code.scaler_calls("unscale_")
    for clip in _clips(code):
        near = [u for u in unscales if together(u, clip)]
        if _scaled(code, clip) and near and not any(before(u, clip) for u in near):
            yield clip


def _clip_scaled(code: Code) -> Iterator[ast.expr]:
    together, unscales = code.module.together, code.scaler_calls("unscale_")
    for clip in _clips(code):
        if _scaled(code, clip) and not any(together(u, clip) for u in unscales):
            yield clip


def _never_updated(code: Code) -> Iterator[ast.expr]:
    if code.new_scalers and not code.scaler_calls("update"):
        yield from code.scaler_calls("step")


def _unscaled_backward(code: Code) -> Iterator[ast.expr]:
    """A backward of the plain loss before ``scaler.step``, where nothing is ever scaled."""
    if code.scaler_calls("scale"):
        return
    steps = code.scaler_calls("step")
    for call in code.backwards():
        if any(code.module.whenever(step, call) and before(call, step) for step in steps):
            yield call


def _around_scaler(code: Code) -> Iterator[ast.expr]:
    """``optimizer.step()`` after a scaled backward, and no ``scaler.step`` of that optimizer."""
    steps = code.scaler_calls("step")
    for call in code.optimizer_steps():
        assert isinstance(call.func, ast.Attribute)
        own = call.func.value
        backwards = [b for b in code.backwards() if code.is_scaled(b) and before(b, call)]
        reached = any(code.module.whenever(b, call) for b in backwards)
        if reached and not any(same(step.args[0], own) for step in steps):
            others = [s for s in steps if code.module.together(s, call)]
            if not others:
                yield call


def _stepped_twice(code: Code) -> Iterator[ast.expr]:
    for call in code.optimizer_steps():
        assert isinstance(call.func, ast.Attribute)
        for step in code.scaler_calls("step"):
            if same(step.args[0], call.func.value) and code.module.whenever(step, call):
                yield call
                break


def _block(code: Code, call: ast.Call) -> tuple[ast.AST, int] | None:
    """The block that a call's own statement stands in, and the index in it."""
    child: ast.AST = call
    for parent in code.module.parents(call):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(parent, name, None)
            if isinstance(block, list) and child in block:
                return parent, block.index(child)
        child = parent
    return None


def _in_one_block(code: Code, first: ast.Call, then: ast.Call) -> bool:
    """Whether two calls stand one after the other, with no ``update`` between them."""
    one, other = _block(code, first), _block(code, then)
    if one is None or other is None or one[0] is not other[0] or one[1] >= other[1]:
        return False
    updates = code.scaler_calls("update")
    return not any(before(first, u) and before(u, then) for u in updates)


def _unscaled_twice(code: Code) -> Iterator[ast.expr]:
    calls = code.scaler_calls("unscale_")
    for i, call in enumerate(calls):
        if any(same(e.args[0], call.args[0]) and _in_one_block(code, e, call) for e in calls[:i]):
            yield call


def _after_step(code: Code) -> Iterator[ast.expr]:
    for call in code.scaler_calls("unscale_"):
        steps = [s for s in code.scaler_calls("step") if same(s.args[0], call.args[0])]
        if any(_in_one_block(code, step, call) for step in steps):
            yield call


def _closure(code: Code) -> Iterator[ast.expr]:
    for call in code.scaler_calls("step"):
        given = call.args[1] if len(call.args) > 1 else keyword(call, "closure")
        handed_on = isinstance(given, ast.Name) and code.module.is_parameter(given)
        none = isinstance(given, ast.Constant) and given.value is None
        if given is not None and not handed_on and not none:
            yield call


def _penalty(code: Code) -> Iterator[ast.expr]:
    """``torch.autograd.grad`` of a scaled loss, in a scope that never asks for the scale."""
    scales = set(code.scaler_calls("scale"))
    for call in code.module.calls():
        if code.module.name(call.func) != "torch.autograd.grad" or not (call.args or call.keywords):
            continue
        loss = call.args[0] if call.args else keyword(call, "outputs")
        name = code.module.name(loss) if loss is not None else ""
        given = code.module.assigned(name, at=call) if name else None
        parts = [n for part in (loss, given) if part is not None for n in ast.walk(part)]
        scope = code.module.scope(call)
        known = any(code.module.scope(g) is scope for g in code.scaler_calls("get_scale"))
        if scales.intersection(parts) and not known:
            yield call


_LOOP = """\
import torch

scaler = torch.amp.GradScaler("cuda")
for x in loader:
    optimizer.zero_grad()
    scaler.scale(model(x)).backward()
{}
"""
GOOD = _LOOP.format(
    "    scaler.unscale_(optimizer)\n"
    "    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"
    "    scaler.step(optimizer)\n    scaler.update()"
)

RULES = (
    Rule(
        "clip-before-unscale",
        "`clip_grad_norm_` before `scaler.unscale_`",
        "clips gradients that still carry the loss scale; call scaler.unscale_(optimizer) first",
        _TRAPS + "ls-clip",
        _LOOP.format(
            "    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"
            "    scaler.unscale_(optimizer)\n    scaler.step(optimizer)\n    scaler.update()"
        ),
        GOOD,
        _clip_early,
    ),
    Rule(
        "clip-without-unscale",
        "`clip_grad_norm_` under a scaler, and no `unscale_`",
        "clips gradients that carry the loss scale, 65536 at first; "
        "call scaler.unscale_(optimizer) before",
        _TRAPS + "ls-clip",
        _LOOP.format(
            "    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"
            "    scaler.step(optimizer)\n    scaler.update()"
        ),
        GOOD,
        _clip_scaled,
    ),
    Rule(
        "scaler-never-updated",
        "`scaler.step` in a file without `scaler.update`",
        "raises at the second step, and the scale never moves; call scaler.update() after it",
        _TRAPS + "ls-order",
        _LOOP.format("    scaler.step(optimizer)"),
        GOOD,
        _never_updated,
    ),
    Rule(
        "backward-without-scale",
        "`loss.backward()` and then `scaler.step`, with nothing scaled",
        "the gradients are not scaled, and scaler.step fails; call scaler.scale(loss).backward()",
        _TRAPS + "ls-order",
        _LOOP.format("    scaler.step(optimizer)\n    scaler.update()").replace(
            "scaler.scale(model(x)).backward()", "model(x).backward()"
        ),
        GOOD,
        _unscaled_backward,
    ),
    Rule(
        "step-around-scaler",
        "`optimizer.step()` after a scaled backward",
        "steps with gradients that carry the loss scale, infinities included; "
        "call scaler.step(optimizer)",
        "recipe/loss_scaling#ls-recipe",
        _LOOP.format("    optimizer.step()\n    scaler.update()"),
        GOOD,
        _around_scaler,
    ),
    Rule(
        "stepped-twice",
        "`scaler.step(optimizer)` and `optimizer.step()`",
        "steps twice, the second time also where the scaler skipped; leave out optimizer.step()",
        "recipe/loss_scaling#ls-recipe",
        _LOOP.format("    scaler.step(optimizer)\n    optimizer.step()\n    scaler.update()"),
        GOOD,
        _stepped_twice,
    ),
    Rule(
        "unscaled-twice",
        "two `unscale_` of one optimizer before `update`",
        "raises a RuntimeError: gradients are unscaled once for each update()",
        _TRAPS + "ls-unscale-twice",
        _LOOP.format(
            "    scaler.unscale_(optimizer)\n    scaler.unscale_(optimizer)\n"
            "    scaler.step(optimizer)\n    scaler.update()"
        ),
        GOOD,
        _unscaled_twice,
    ),
    Rule(
        "unscale-after-step",
        "`unscale_` after `step` of the same optimizer",
        "raises a RuntimeError: step has unscaled already; call unscale_ before it",
        _TRAPS + "ls-order",
        _LOOP.format(
            "    scaler.step(optimizer)\n    scaler.unscale_(optimizer)\n    scaler.update()"
        ),
        GOOD,
        _after_step,
    ),
    Rule(
        "scaler-with-closure",
        "a closure given to `scaler.step`",
        "the closure sees scaled gradients, and closure= raises; "
        "take bfloat16 without a scaler for LBFGS",
        _TRAPS + "ls-closure",
        _LOOP.format("    scaler.step(optimizer, closure)\n    scaler.update()"),
        GOOD,
        _closure,
    ),
    Rule(
        "penalty-of-scaled-gradients",
        "`torch.autograd.grad` of a scaled loss, never divided by the scale",
        "the gradients that it returns carry the loss scale; divide them by scaler.get_scale()",
        _TRAPS + "ls-penalty",
        _LOOP.format(
            "    scaled = scaler.scale(model(x))\n"
            "    g = torch.autograd.grad(scaled, weights, create_graph=True)\n"
            "    scaler.step(optimizer)\n    scaler.update()"
        ),
        _LOOP.format(
            "    scaled = scaler.scale(model(x))\n"
            "    g = torch.autograd.grad(scaled, weights, create_graph=True)\n"
            "    g = [one / scaler.get_scale() for one in g]\n"
            "    scaler.step(optimizer)\n    scaler.update()"
        ),
        _penalty,
    ),
)
