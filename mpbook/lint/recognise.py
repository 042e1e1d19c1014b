"""What mixed precision looks like in source: autocast regions, loss scalers, optimizers, models."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mpbook.lint.dtypes import Dtypes
from mpbook.lint.module import Module, keyword, position

AUTOCASTS = {
    *("torch.autocast", "torch.amp.autocast", "torch.amp.autocast_mode.autocast"),
    *("torch.cuda.amp.autocast", "torch.cuda.amp.autocast_mode.autocast"),
    *("torch.cpu.amp.autocast", "autocast", "amp.autocast"),
}
SCALERS = {
    *("torch.amp.GradScaler", "torch.amp.grad_scaler.GradScaler", "torch.GradScaler"),
    *("torch.cuda.amp.GradScaler", "torch.cuda.amp.grad_scaler.GradScaler"),
    *("torch.cpu.amp.GradScaler", "GradScaler", "amp.GradScaler"),
}
OPTIMIZERS = {
    *("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta"),
    *("ASGD", "Rprop", "Adafactor", "LBFGS", "SparseAdam", "Muon"),
}
_SCALER_NAME = re.compile(r"(^|\.)_*(\w*_)?(grad|amp|loss)?_?scaler(_\w+)?$", re.IGNORECASE)
_OPTIMIZER_NAME = re.compile(r"(^|[._])(opt|optim|optimi[sz]er)s?\w*$", re.IGNORECASE)
_MASTER = re.compile(r"master|fp16|kahan|stochastic|deepspeed|initialize|Optimizer$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Region:
    """One ``with autocast(...)`` or one decorated function.

    Attributes:
        call: the call of autocast.
        body: what runs in it.
        dtype: the 16-bit dtype that it names; empty where it is not written out.
        device: the device that it names; empty where it is not written out.
        turned_off: ``enabled=False`` is written out.
    """

    call: ast.Call
    body: tuple[ast.stmt, ...]
    dtype: str
    device: str
    turned_off: bool


class Code:
    """A module and the parts of mixed-precision training that it holds."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.dtypes = Dtypes(module)

    @functools.cached_property
    def new_scalers(self) -> list[ast.Call]:
        """Calls that make a `GradScaler`, those with ``enabled=False`` left out."""
        made = [c for c in self.module.calls() if self.module.name(c.func) in SCALERS]
        return [call for call in made if not _is_false(keyword(call, "enabled"))]

    def scaler_calls(self, method: str) -> list[ast.Call]:
        """Calls such as ``scaler.step(optimizer)``, in the order in which they run."""
        least = 0 if method in ("update", "state_dict", "get_scale") else 1
        return [
            call
            for call in self.module.calls()
            if isinstance(call.func, ast.Attribute)
            and call.func.attr == method
            and len(call.args) >= least
            and self._is_scaler(call.func.value)
        ]

    def _is_scaler(self, node: ast.expr) -> bool:
        name = self.module.name(node)
        if not name:
            return False
        values = [v for v in self.module.values(name) if isinstance(v, ast.Call)]
        made = [v for v in values if self.module.name(v.func) in SCALERS]
        if made:
            return not all(_is_false(keyword(call, "enabled")) for call in made)
        return bool(_SCALER_NAME.search(name))

    def optimizer_steps(self) -> Iterator[ast.Call]:
        """Calls of ``optimizer.step()``."""
        for call in self.module.calls():
            if isinstance(call.func, ast.Attribute) and call.func.attr == "step" and not call.args:
                name = self.module.name(call.func.value)
                if name and (_OPTIMIZER_NAME.search(name) or self._is_optimizer(name)):
                    yield call

    def _is_optimizer(self, name: str) -> bool:
        return any(isinstance(v, ast.Call) and self.optimizer(v) for v in self.module.values(name))

    def optimizer(self, call: ast.Call) -> str:
        """The name of the torch optimizer that a call makes; else empty."""
        name = self.module.name(call.func)
        owner, _, last = name.rpartition(".")
        known = owner.startswith("torch.optim") or owner in ("", "optim")
        return last if last in OPTIMIZERS and known else ""

    def trained(self, call: ast.Call) -> list[ast.expr]:
        """The models whose ``parameters()`` an optimizer gets."""
        found = []
        for argument in call.args[:1] or [k.value for k in call.keywords if k.arg == "params"]:
            wheres = [argument]
            name = self.module.name(argument)
            given = self.module.assigned(name, at=call) if name else None
            wheres += [given] if given is not None else []
            for node in [n for where in wheres for n in ast.walk(where)]:
                if isinstance(node, ast.Attribute) and node.attr in (
                    "parameters",
                    "named_parameters",
                ):
                    found.append(node.value)
        return found

    def half_models(self) -> Iterator[tuple[ast.Call, ast.expr, str]]:
        """Optimizers over a 16-bit model: the call, the model and its dtype."""
        for call in self.module.calls():
            if self.optimizer(call):
                for model in self.trained(call):
                    dtype = self.dtypes.of(model)
                    if dtype and not self._has_adapters(model) and not self._has_master(call):
                        yield call, model, dtype

    def _has_master(self, optimizer: ast.Call) -> bool:
        """Whether an optimizer is handed to something that keeps what 16-bit weights lose."""
        parent = next(self.module.parents(optimizer), None)
        if isinstance(parent, ast.Call | ast.keyword):
            return True
        names = {self.module.name(t) for t in getattr(parent, "targets", [])} - {""}
        wrappers = [c for c in self.module.calls() if _MASTER.search(self.module.name(c.func))]
        given = [a for c in wrappers for a in (*c.args, *(k.value for k in c.keywords))]
        return any(self.module.name(argument) in names for argument in given)

    def _has_adapters(self, model: ast.expr) -> bool:
        """Whether adapters were put on the model, which PEFT keeps in float32."""
        name = self.module.name(model)
        texts = [ast.dump(v) for v in self.module.values(name)]
        return any("get_peft_model" in t or "quantization_config" in t for t in texts)

    @functools.cached_property
    def regions(self) -> list[Region]:
        """Every autocast region."""
        found = []
        for node in self.module.nodes:
            if isinstance(node, ast.With | ast.AsyncWith):
                calls = [self._autocast(item.context_expr) for item in node.items]
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                calls = [self._autocast(decorator) for decorator in node.decorator_list]
            else:
                continue
            found += [self._region(call, node.body) for call in calls if call is not None]
        return found

    def _autocast(self, node: ast.expr) -> ast.Call | None:
        """The call of autocast in an expression, or in what a name was given."""
        inside = [n for n in ast.walk(node) if isinstance(n, ast.Call)]
        for call in inside:
            if self.module.name(call.func) in AUTOCASTS:
                return call
        name = self.module.name(node)
        given = self.module.assigned(name, at=node) if name else None
        if given is None or self.module.name(given) == name:
            return None
        calls = [n for n in ast.walk(given) if isinstance(n, ast.Call)]
        return next((c for c in calls if self.module.name(c.func) in AUTOCASTS), None)

    def _region(self, call: ast.Call, body: list[ast.stmt]) -> Region:
        name = self.module.name(call.func)
        old = ".cuda.amp." in name or ".cpu.amp." in name
        dtype, enabled = keyword(call, "dtype"), keyword(call, "enabled")
        if not old and dtype is None and len(call.args) > 1:
            dtype = call.args[1]
        if old and call.args and enabled is None:
            enabled = call.args[0]
        written = self.dtypes.named(dtype)
        device = keyword(call, "device_type") or (call.args[0] if call.args and not old else None)
        place = str(device.value) if isinstance(device, ast.Constant) else ""
        if old:
            place = "cuda" if ".cuda." in name else "cpu"
        if dtype is None and place.split(":")[0] == "cuda":
            written = "float16"  # CUDA's default
        if dtype is None and place == "cpu":
            written = "bfloat16"
        return Region(call, tuple(body), written, place, _is_false(enabled))

    def region_of(self, node: ast.AST) -> Region | None:
        """The innermost autocast region around a node within its function."""
        around = list(self.module.parents(node))
        best: tuple[int, Region] | None = None
        for region in self.regions:
            depth = next((i for i, p in enumerate(around) if p in region.body), None)
            if depth is None or self.module.scope(region.body[0]) is not self.module.scope(node):
                continue
            if node in ast.walk(region.call):
                continue
            if best is None or depth < best[0]:
                best = depth, region
        return best[1] if best else None

    def in_autocast(self, node: ast.AST) -> Region | None:
        """The same, unless that region is turned off."""
        region = self.region_of(node)
        return region if region and not region.turned_off else None

    @functools.cached_property
    def uses_float16(self) -> bool:
        """Whether anything in the file computes in float16: a scaler, a region or a cast."""
        if self.new_scalers or any(r.dtype == "float16" for r in self.regions if not r.turned_off):
            return True
        return any(self.dtypes.cast(call) == "float16" for call in self.module.calls())

    @functools.cached_property
    def _casts_a_model(self) -> bool:
        """Whether a model is cast to float16: in place, or where its class is called."""
        for call in self.module.calls():
            if self.dtypes.cast(call) == "float16" and isinstance(call.func, ast.Attribute):
                owner = call.func.value
                name = self.module.name(owner).split(".")[-1]
                part = self.module.name(owner).startswith("self.")  # of a model, not all of it
                alone = not part and isinstance(next(self.module.parents(call), None), ast.Expr)
                made = isinstance(owner, ast.Call) and self.module.name(owner.func)[:1].isupper()
                if alone or made or name in ("model", "net", "network", "module"):
                    return True
        return False

    def is_float16(self, node: ast.expr) -> bool:
        """Whether an expression is float16: it was cast, or a model that is cast computes it."""
        if self.dtypes.of(node) == "float16":
            return True
        inside = any(
            isinstance(parent, ast.ClassDef)
            and any(ast.unparse(base).endswith("Module") for base in parent.bases)
            for parent in self.module.parents(node)
        )
        return inside and self._casts_a_model and self._depends_on_input(node)

    def _depends_on_input(self, node: ast.expr) -> bool:
        """Whether an expression holds a parameter of its function, and no cast to float32."""
        text = ast.unparse(node)
        if "float" in text or "double" in text:
            return False
        names = [n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id != "self"]
        if any(self.module.is_parameter(name) for name in names):
            return True
        given = [self.module.assigned(self.module.name(name), at=name) for name in names]
        return any(g is not None and g is not node and "float" not in ast.unparse(g) for g in given)

    def backwards(self) -> Iterator[ast.Call]:
        """Calls of ``loss.backward()``; ``engine.backward(loss)`` may scale by itself."""
        for call in self.module.calls():
            if isinstance(call.func, ast.Attribute) and call.func.attr == "backward":
                yield from [] if call.args else [call]

    def is_scaled(self, backward: ast.Call) -> bool:
        """Whether ``backward`` is called on ``scaler.scale(...)`` or on a name for it."""
        assert isinstance(backward.func, ast.Attribute)
        loss = backward.func.value
        scales = set(self.scaler_calls("scale"))
        if any(node in scales for node in ast.walk(loss)):
            return True
        name = self.module.name(loss)
        given = self.module.assigned(name, at=backward) if name else None
        return given is not None and any(node in scales for node in ast.walk(given))


def _is_false(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def same(first: ast.AST, second: ast.AST) -> bool:
    """Whether two expressions are written alike."""
    return ast.dump(first) == ast.dump(second)


def before(first: ast.AST, then: ast.AST) -> bool:
    """Whether a node ends before another one does."""
    return position(first) < position(then)
