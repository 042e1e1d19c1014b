"""Rules about numbers that 16 bits do not hold: masks, small constants, squares, exponentials."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from mpbook.lint.module import Module, keyword, number
from mpbook.lint.recognise import Code
from mpbook.lint.rule import Rule

_TRAPS = "numbers/rounding_and_sums_traps#"
_FORMATS = "numbers/precision_formats_traps#"
_TOO_LARGE = 65520.0
"""float16 rounds this to infinity."""
_VANISHES = 2.0**-25
"""float16 rounds this, and all below, to 0."""
_FILLS = {"masked_fill", "masked_fill_", "fill_", "where", "full", "full_like", "clamp", "clamp_"}
_SUMS = {"sum", "mean", "cumsum", "var", "std", "norm", "prod", "logsumexp"}
_NORMALISE = {"torch.nn.functional.normalize", "F.normalize"}


def _mask(code: Code) -> Iterator[ast.expr]:
    """A number beyond float16's range, filled in or added, in a file that uses float16."""
    if not code.uses_float16:
        return
    for call in code.module.calls():
        if code.module.attribute(call) in _FILLS:
            given = [*call.args, *(k.value for k in call.keywords)]
            yield from (a for a in given if _is_mask(code.module, a))
    for node in code.module.nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            sides = (node.left, node.right)
            yield from (side for side in sides if _is_mask(code.module, side))
        elif isinstance(node, ast.Assign) and _is_mask(code.module, node.value):
            target = node.targets[0]
            if isinstance(target, ast.Subscript) and code.dtypes.of(target.value) != "bfloat16":
                yield node.value


def _is_mask(module: Module, node: ast.expr) -> bool:
    """A *negative* number as people write them for masks: -1e9, -1e10, or a name for one."""
    value = number(node)
    if value is None and isinstance(node, ast.Name):
        value = number(module.assigned(module.name(node), at=node))
    return value is not None and -float("inf") < value <= -_TOO_LARGE


def _finfo_min(module: Module, node: ast.AST) -> bool:
    """Whether ``torch.finfo(...).min``, or a name that was given it, stands in an expression."""
    parts = list(ast.walk(node))
    names = [n for n in parts if isinstance(n, ast.Name)]
    given = [module.assigned(module.name(name), at=name) for name in names]
    return any(_is_finfo_min(n) for n in (*parts, *given))


def _is_finfo_min(node: ast.AST | None) -> bool:
    match node:
        case ast.Attribute(attr="min", value=ast.Call(func=function)):
            return ast.unparse(function) in ("torch.finfo", "finfo")
    return False


def _added_minimum(code: Code) -> Iterator[ast.expr]:
    """``scores + mask``, where the mask holds ``finfo.min``."""
    for node in code.module.nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            pairs = [(node.left, node.right), (node.right, node.left)]
            new = any(_is_new(code.module, side) for side in pairs[0])
            if not new and any(_is_low(code.module, *pair) for pair in pairs):
                yield node
        elif isinstance(node, ast.AugAssign) and _is_low(code.module, node.value, node.target):
            yield node.value


def _is_low(module: Module, side: ast.expr, other: ast.expr) -> bool:
    """A product with the minimum, or a name that was given one; two masks, if it was filled."""
    name = module.name(side)
    given = module.assigned(name, at=side) if isinstance(side, ast.Name) else side
    match given:
        case ast.BinOp(op=ast.Mult()):
            return _finfo_min(module, given) and not _selects(given, other)
        case ast.Call(func=ast.Attribute(value=filled, attr=method)) if method in _FILLS:
            masks = "mask" in f"{name} {module.name(other)}" or _is_new(module, filled)
            return isinstance(side, ast.Name) and masks and _finfo_min(module, given)
    return False


def _selects(low: ast.expr, other: ast.expr) -> bool:
    """Whether the sum chooses, as ``x * keep + (1 - keep) * minimum`` does."""
    if not isinstance(other, ast.BinOp) or not isinstance(other.op, ast.Mult):
        return False
    names = [{n.id for n in ast.walk(s) if isinstance(n, ast.Name)} for s in (low, other)]
    return bool(names[0] & names[1])


def _is_new(module: Module, side: ast.expr) -> bool:
    """A tensor of zeros, to which the minimum may be added."""
    given = module.assigned(module.name(side), at=side) if isinstance(side, ast.Name) else side
    return isinstance(given, ast.Call) and module.attribute(given).startswith(("zeros", "new_zero"))


def _eps(code: Code) -> Iterator[ast.expr]:
    """A small constant added to a float16 number, or bounding one from below."""
    for node in code.module.nodes:
        pairs: list[tuple[ast.expr, ast.expr]] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            pairs = [(node.left, node.right), (node.right, node.left)]
        elif isinstance(node, ast.Call):
            bound = _lower_bound(code.module, node)
            pairs = [bound] if bound else []
        for small, other in pairs:
            if _vanishes(code.module, small) and code.is_float16(other):
                yield small


def _vanishes(module: Module, node: ast.expr) -> bool:
    value = number(node)
    name = module.name(node)
    if value is None and name:
        given = module.assigned(name, at=node)
        if isinstance(given, ast.Name):  # self.eps = eps, with eps=1e-8 in the signature
            given = module.default(given)
        elif given is None and isinstance(node, ast.Name):
            given = module.default(node)
        value = number(given)
    return value is not None and 0 < value <= _VANISHES


def _lower_bound(module: Module, call: ast.Call) -> tuple[ast.expr, ast.expr] | None:
    """The smallest value that a call allows, and the tensor that it bounds."""
    if module.name(call.func) in _NORMALISE and call.args:
        given = keyword(call, "eps") or ast.copy_location(ast.Constant(1e-12), call)
        return given, call.args[0]
    if not isinstance(call.func, ast.Attribute):
        return None
    if call.func.attr in ("clamp", "clamp_", "clamp_min", "clamp_min_", "clip"):
        low = keyword(call, "min") or (call.args[0] if call.args else None)
        return (low, call.func.value) if low is not None else None
    return None


def _sums(code: Code) -> Iterator[ast.expr]:
    """A sum of squares of a 16-bit tensor, with no ``dtype`` and no float32."""
    for call in code.module.calls():
        if code.module.attribute(call) not in _SUMS or keyword(call, "dtype"):
            continue
        terms = _terms(code.module, call)
        base = _squared(terms) if terms is not None else None
        if base is not None and code.is_float16(base):
            yield call


def _terms(module: Module, call: ast.Call) -> ast.expr | None:
    """What a call adds up: ``x`` of ``x.sum()`` and of ``torch.sum(x)``."""
    if module.name(call.func).startswith("torch."):
        return call.args[0] if call.args else None
    return call.func.value if isinstance(call.func, ast.Attribute) else None


def _squared(node: ast.expr) -> ast.expr | None:
    """The base of a square; none if it is no square."""
    match node:
        case ast.BinOp(left=base, op=ast.Pow(), right=ast.Constant(value=2 | 2.0)):
            return base
        case ast.BinOp(left=base, op=ast.Mult(), right=other) if ast.dump(base) == ast.dump(other):
            return base
        case ast.Call(func=ast.Attribute(value=base, attr="square"), args=[]):
            return base
        case ast.Call(func=ast.Attribute(value=base, attr="pow"), args=[ast.Constant(value=2)]):
            return base
        case ast.Call(func=ast.Attribute(attr="square"), args=[base]):
            return base
    return None


def _cast_sum(code: Code) -> Iterator[ast.expr]:
    """``x.half().sum()``: cast, and added up at once."""
    for call in code.module.calls():
        if code.module.attribute(call) in _SUMS - {"norm", "logsumexp"} and not call.keywords:
            terms = _terms(code.module, call)
            if isinstance(terms, ast.Call) and code.dtypes.cast(terms) == "float16":
                yield call


def _softmax(code: Code) -> Iterator[ast.expr]:
    """``e / e.sum()`` with ``e`` the exponential of a float16 number."""
    module = code.module
    for node in module.nodes:
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Div):
            continue
        above, below = node.left, node.right
        if not isinstance(below, ast.Call) or module.attribute(below) != "sum":
            continue
        terms = _terms(module, below)
        if terms is None or ast.dump(terms) != ast.dump(above):
            continue
        given = module.assigned(module.name(above), at=above) if module.name(above) else above
        power = _exponent(module, given)
        shifted = power is None or "max" in ast.dump(power)
        if power is not None and not shifted and code.is_float16(power):
            yield node


def _exponent(module: Module, node: ast.expr | None) -> ast.expr | None:
    if isinstance(node, ast.Call) and module.attribute(node) == "exp":
        return _terms(module, node)
    return None


def _probability(code: Code) -> Iterator[ast.expr]:
    """``softmax(...).log()`` and ``sigmoid(...).log()`` in the dtype of 16-bit logits."""
    module = code.module
    for call in module.calls():
        if module.attribute(call) != "log":
            continue
        inner = _terms(module, call)
        if isinstance(inner, ast.Name):
            inner = module.assigned(module.name(inner), at=inner)
        if not isinstance(inner, ast.Call) or keyword(inner, "dtype"):
            continue
        if module.attribute(inner) in ("softmax", "sigmoid"):
            owner = inner.func.value if isinstance(inner.func, ast.Attribute) else None
            logits = inner.args[0] if module.name(inner.func).startswith(("torch", "F.")) else owner
            if code.dtypes.of(logits):
                yield call


def _close(code: Code) -> Iterator[ast.expr]:
    """`assert_close` of bfloat16 tensors at its default tolerance."""
    module = code.module
    for call in module.calls():
        if module.attribute(call) == "assert_close" and len(call.args) > 1:
            tolerant = any(k.arg in ("rtol", "atol", None) for k in call.keywords)
            if not tolerant and all(code.dtypes.of(a) == "bfloat16" for a in call.args[:2]):
                yield call


RULES = (
    Rule(
        "mask-beyond-float16",
        "-1e9 and the like, in a file that uses float16",
        "float16 ends at -65504: filling raises, adding makes -inf, a row masked whole is NaN; "
        "fill -inf once, or give attention a boolean mask",
        _FORMATS + "mask-value",
        'import torch\n\nwith torch.autocast("cuda", dtype=torch.float16):\n'
        "    weights = scores.masked_fill(hidden, -1e9).softmax(-1)\n",
        'import torch\n\nwith torch.autocast("cuda", dtype=torch.float16):\n'
        "    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)\n",
        _mask,
    ),
    Rule(
        "minimum-plus-score",
        "`finfo(...).min` added to scores",
        "overflows to -inf in float16 once a score is -16 or less, in any format where two masks "
        "are added; fill instead of adding",
        _FORMATS + "mask-value",
        "import torch\n\nmask = (1 - keep) * torch.finfo(scores.dtype).min\n"
        "weights = (scores + mask).softmax(-1)\n",
        "import torch\n\nweights = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)\n",
        _added_minimum,
    ),
    Rule(
        "eps-vanishes",
        "a constant up to 2**-25 beside a float16 number",
        "is 0 in float16, so it protects nothing; compute this in float32, or take at least 6e-5",
        _FORMATS + "formats-eps",
        "x = x.half()\ny = x / (x.norm() + 1e-8)\n",
        "x = x.half()\ny = x / (x.float().norm() + 1e-8)\n",
        _eps,
    ),
    Rule(
        "squares-in-float16",
        "a sum or a mean of squares of a float16 tensor",
        "a square leaves float16 from 256 on, and the norm is then 0 or inf; write x.float() first",
        _TRAPS + "sums-rms",
        "x = x.half()\ny = x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()\n",
        "x = x.half()\ny = x * (x.float().pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()\n",
        _sums,
    ),
    Rule(
        "cast-before-sum",
        "`.half()` just before a sum, a mean or a variance",
        "the result has to fit into float16, and overflows at 65520; "
        "sum first or give dtype=torch.float32",
        _TRAPS + "sums-fp16-mean",
        "total = losses.half().sum()\n",
        "total = losses.sum().half()\n",
        _cast_sum,
    ),
    Rule(
        "softmax-by-hand",
        "`e / e.sum()` with `e` the exponential of a float16 tensor",
        "exp overflows in float16 above 11, and inf / inf is NaN; "
        "call softmax(..., dtype=torch.float32)",
        _TRAPS + "sums-softmax",
        "import torch\n\ne = torch.exp(z.half())\np = e / e.sum(-1, keepdim=True)\n",
        "import torch\n\np = torch.softmax(z.half(), -1, dtype=torch.float32)\n",
        _softmax,
    ),
    Rule(
        "log-of-probability",
        "the logarithm of a 16-bit softmax or sigmoid",
        "a 16-bit probability is 0 or 1 early, and its logarithm -inf or 0; "
        "call log_softmax, or a loss that takes logits",
        "reference/nan#nan-loss",
        "logits = logits.half()\nloss = -logits.softmax(-1).log()\n",
        "logits = logits.half()\nloss = -logits.float().log_softmax(-1)\n",
        _probability,
    ),
    Rule(
        "loose-comparison",
        "`assert_close` of two bfloat16 tensors, no tolerance named",
        "its default tolerance for bfloat16 lets differences of 1.6% pass; name rtol and atol",
        _FORMATS + "formats-assert-close",
        "import torch\n\ntorch.testing.assert_close(x.bfloat16(), y.bfloat16())\n",
        "import torch\n\n"
        "torch.testing.assert_close(x.bfloat16(), y.bfloat16(), rtol=0.01, atol=0)\n",
        _close,
    ),
)
