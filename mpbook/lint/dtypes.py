"""Which expressions are 16-bit, as far as the source says so: casts, and what keeps their dtype.

An expression of which nothing is known has no dtype here: a rule fires on evidence, not on doubt.
"""

from __future__ import annotations

import ast
import re

from mpbook.lint.module import Module, keyword, number, position

SIXTEEN_BIT = {
    "torch.float16": "float16",
    "torch.half": "float16",
    "torch.bfloat16": "bfloat16",
    "torch.HalfTensor": "float16",
    "torch.cuda.HalfTensor": "float16",
    "torch.BFloat16Tensor": "bfloat16",
}
"""Names of dtypes and of the old tensor types."""

_METHODS = {"half": "float16", "bfloat16": "bfloat16"}
_WIDENING = {"float", "double", "int", "long", "bool"}
_CASTS = {"to", "type", "astype"}
_KEEP = {
    *("cuda", "cpu", "eval", "train", "clone", "detach", "contiguous", "requires_grad_", "compile"),
    *("view", "reshape", "transpose", "permute", "flatten", "unsqueeze", "squeeze", "expand"),
    *("pow", "square", "abs", "exp", "log", "sqrt", "rsqrt", "mul", "add", "sub", "div", "neg"),
    *("softmax", "tanh", "gelu", "silu"),
    *("sum", "mean", "cumsum", "norm", "var", "std", "amax", "max", "clamp", "relu", "sigmoid"),
}
_KEEPING_FUNCTIONS = {f"torch.{name}" for name in _KEEP}
_FACTORIES = {
    *("zeros", "ones", "empty", "full", "tensor", "rand", "randn", "arange", "linspace"),
    *("as_tensor", "zeros_like", "ones_like", "full_like"),
}
_SCALARS = re.compile(r"temperature|temp|tau|scale|eps|epsilon|alpha|beta|gamma|d_k|dim|head_dim")
_MADE_OF = {"copy.deepcopy", "deepcopy", "torch.compile", "torch.nn.DataParallel"}


class Dtypes:
    """The 16-bit expressions of a module."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self._in_place = [c for c in module.calls() if self._is_statement(c)]

    def named(self, node: ast.expr | None) -> str:
        """The 16-bit dtype that an expression names: ``torch.half``, ``"float16"``; else empty."""
        if node is None:
            return ""
        if isinstance(node, ast.Constant):
            text = str(node.value).removeprefix("torch.")
            return text if text in ("float16", "bfloat16") else ""
        name = self._module.name(node)
        if name in SIXTEEN_BIT:
            return SIXTEEN_BIT[name]
        given = self._module.assigned(name, at=node) if name else None
        return SIXTEEN_BIT.get(self._module.name(given), "") if given is not None else ""

    def cast(self, call: ast.expr) -> str:
        """The 16-bit dtype that a call casts its receiver to: ``x.half()``, ``x.to(dtype)``."""
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            return ""
        method = call.func.attr
        if method in _METHODS and not call.args:
            return _METHODS[method]
        if method in _CASTS:
            given = [*call.args, keyword(call, "dtype")]
            return next(filter(None, map(self.named, given)), "")
        return ""

    def of(self, node: ast.expr | None, *, depth: int = 0) -> str:
        """``float16`` or ``bfloat16`` where the source shows it, else empty."""
        if node is None or depth > 12:
            return ""
        match node:
            case ast.Call():
                return self._of_call(node, depth)
            case ast.Subscript(value=value) | ast.UnaryOp(operand=value):
                return self.of(value, depth=depth + 1)
            case ast.IfExp(body=body, orelse=other):
                return self.of(body, depth=depth + 1) or self.of(other, depth=depth + 1)
            case ast.BinOp(left=left, right=right):
                return self._of_pair(left, right, depth)
            case ast.Name() | ast.Attribute():
                return self._of_name(node, depth)
        return ""

    def _of_call(self, call: ast.Call, depth: int) -> str:
        name = self._module.name(call.func)
        dtype = keyword(call, "dtype")
        if dtype is not None and not self.cast(call):
            return self.named(dtype)
        if name in _KEEPING_FUNCTIONS or name in _MADE_OF:
            return self.of(call.args[0], depth=depth + 1) if call.args else ""
        if not isinstance(call.func, ast.Attribute):
            return ""
        method = call.func.attr
        if self.cast(call):
            return self.cast(call)
        receiver = call.func.value
        if method in ("to", "type"):  # to a device keeps the dtype, to anything else is unknown
            kept = not call.keywords and all(self._is_device(a) for a in call.args)
            return self.of(receiver, depth=depth + 1) if kept else ""
        if method in _WIDENING or method not in _KEEP:
            return ""
        return self.of(receiver, depth=depth + 1)

    def _is_device(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Constant):
            return str(node.value).split(":")[0] in ("cuda", "cpu", "mps", "xpu")
        return "device" in self._module.name(node).lower()

    def _of_pair(self, left: ast.expr, right: ast.expr, depth: int) -> str:
        one, other = self.of(left, depth=depth + 1), self.of(right, depth=depth + 1)
        if _is_scalar(left):
            return other
        if _is_scalar(right):
            return one
        return one if one == other else ""

    def _of_name(self, node: ast.Name | ast.Attribute, depth: int) -> str:
        name = self._module.name(node)
        if not name:
            return ""
        given = self._module.assigned(name, at=node)
        after = position(given) if given is not None else (0, 0)
        cast = self._last_in_place(name, node, after)
        if cast is not None:
            return self.cast(cast)
        return self.of(given, depth=depth + 1) if given is not None else ""

    def _last_in_place(self, name: str, use: ast.AST, after: tuple[int, int]) -> ast.Call | None:
        scope = self._module.scope(use)
        made = [
            call
            for call in self._in_place
            if self._receiver(call) == name
            and after < position(call) < position(use)
            and ("." in name or self._module.scope(call) in (scope, self._module.tree))
        ]
        return made[-1] if made else None

    def _is_statement(self, call: ast.Call) -> bool:
        """``model.half()`` alone on its line, which casts a module in place."""
        parent = next(self._module.parents(call), None)
        if not isinstance(parent, ast.Expr) or not isinstance(call.func, ast.Attribute):
            return False
        return call.func.attr in {*_METHODS, *_WIDENING} or bool(self.cast(call))

    def _receiver(self, call: ast.Call) -> str:
        node: ast.expr = call
        while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            node = node.func.value
        return self._module.name(node)


def _is_scalar(node: ast.expr) -> bool:
    """Whether this is a Python number by its looks: written out, a root, a size, a temperature."""
    if number(node) is not None:
        return True
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return bool(_SCALARS.fullmatch(name))
        case ast.Call(func=ast.Attribute(value=ast.Name(id="math"))):
            return True
        case ast.Call(func=ast.Name(id="len" | "float" | "int")):
            return True
        case ast.Subscript(value=ast.Attribute(attr="shape")):
            return True
        case ast.BinOp(left=left, right=right):
            return _is_scalar(left) and _is_scalar(right)
    return False


def is_factory(name: str) -> bool:
    """Whether a dotted name is a function of torch that makes a tensor."""
    owner, _, last = name.rpartition(".")
    return owner == "torch" and last in _FACTORIES
