"""Autocast as a GPU has it, on a CPU: torch's dispatcher with CUDA's lists in place of a CPU's.

The two differ in what they do to a model.  On CUDA ``exp``, ``sum``, ``softmax``, ``layer_norm``
and some sixty more run in float32; on a CPU they run on what they are given, or are on other lists.
So a CPU's own autocast overflows where a GPU would not, and the other way round.

Which operators CUDA's autocast knows is compiled into every torch, and is asked of the dispatcher
of this one.  For each of them, and for those that a CPU's autocast knows, a kernel of the key
``AutocastCPU`` is replaced while the context lasts.  Operators that are made of others reach the
same rules as on a GPU, because it is the same dispatcher that takes them apart.

What a GPU's kernels do inside is not imitated here; for products of float16 matrices, which take
16-bit operands, add in float32 and round once, `mpbook.device.matmul_emulation` does it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from mpbook.autocast.policy import autocast_set
from mpbook.diagnosis.cuda_names import cuda_means_cpu

Rule = Literal["lower precision", "float32", "widest input", "refuses", "recurrent"]

_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

# Source: aten/src/ATen/autocast_mode.h, AT_FORALL_LOWER_PRECISION_FP and AT_FORALL_PROMOTE, the
# same in every supported torch.  What has a kernel for AutocastCUDA and is in neither is float32.
_LOWER = frozenset(
    "_convolution addbmm addmm addmv addr baddbmm bmm chain_matmul conv1d conv2d conv3d conv_tbc "
    "conv_transpose1d conv_transpose2d conv_transpose3d convolution cudnn_convolution "
    "cudnn_convolution_transpose einsum gru_cell linalg_multi_dot linalg_vecdot linear lstm_cell "
    "matmul mm mv prelu rnn_relu_cell rnn_tanh_cell scaled_dot_product_attention "
    "_scaled_dot_product_flash_attention _thnn_fused_lstm_cell _thnn_fused_gru_cell".split()
)
_WIDEST = frozenset(
    "addcdiv addcmul atan2 bilinear cross dot grid_sampler index_put scatter_add tensordot "
    "vdot".split()
)
_RECURRENT = ("aten::lstm.input", "aten::gru.input", "aten::rnn_tanh.input", "aten::rnn_relu.input")
"""cuDNN runs these whole, in 16 bits; a CPU takes them apart or hands them to oneDNN."""
_SETS_ITS_RESULT = frozenset(
    "cumprod cumsum linalg_matrix_norm linalg_vector_norm log_softmax prod softmax sum".split()
)
"""Of the float32 list: given a dtype by the caller, they keep it, and their inputs."""


@contextmanager
def autocast_of(
    target: Literal["cuda", "cpu"], dtype: torch.dtype, device: torch.device
) -> Iterator[Callable[[], None]]:
    """Autocast to ``dtype`` by the rules of ``target``, for tensors on ``device``.

    float32 for ``dtype`` leaves autocast off; a part that switches it on meets the same rules.
    Weights are cast once, and the copies kept until the context ends, as torch does.  What the
    context gives forgets them sooner, for a context around more than one forward pass.

    Args:
        target: whose rules: a GPU's, also for tensors on a CPU, or a CPU's own.
        dtype: float32, float16 or bfloat16.
        device: where the tensors are.
    """
    with ExitStack() as stack:
        enabled = dtype != torch.float32
        casts = _Casts()
        if target == "cuda" and device.type == "cpu":
            stack.enter_context(_cuda_rules(casts))
        lower = dtype if enabled else torch.get_autocast_dtype(device.type)
        stack.callback(casts.forget)
        stack.enter_context(autocast_set(device.type, lower, enabled=enabled))
        yield casts.forget


@contextmanager
def as_on_a_gpu(target: Literal["cuda", "cpu"], device: torch.device) -> Iterator[None]:
    """Whatever switches autocast on in here has the rules of ``target``, also by the name "cuda".

    That is a whole step with its backward pass: a checkpoint runs the forward pass again there.
    """
    if target != "cuda" or device.type != "cpu":
        yield
        return
    default = torch.get_autocast_dtype("cuda")
    off = autocast_set("cpu", default, enabled=False)
    with off, _cuda_rules(_Casts(keep=False)), cuda_means_cpu():
        yield


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Autocast switched off for a part, such as an optimizer's step."""
    return autocast_set(device.type, torch.get_autocast_dtype(device.type), enabled=False)


@contextmanager
def _cuda_rules(casts: _Casts) -> Iterator[None]:
    """CUDA's autocast on CPU tensors, until the context ends."""
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a kernel is replaced is what we want
            for name, rule in rules().items():
                short = name.removeprefix("aten::")
                if rule is None:
                    library.impl(short, torch.library.fallthrough_kernel, allow_override=True)
                else:
                    kernel = functools.partial(casts.run, _overload(short), rule)
                    library.impl(short, kernel, allow_override=True)
        yield
    finally:
        library._destroy()


@functools.cache
def rules() -> dict[str, Rule | None]:
    """What CUDA's autocast does to each operator that either autocast knows; None for nothing."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    found: dict[str, Rule | None] = {}
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith("aten::"):
            continue
        if has(name, "AutocastCUDA"):
            found[name] = _rule(name.removeprefix("aten::").partition(".")[0])
        elif has(name, "AutocastCPU"):
            found[name] = None
    usable = {name: rule for name, rule in found.items() if _exists(name)}
    return usable | dict.fromkeys(_RECURRENT, "recurrent")


def _rule(operator: str) -> Rule:
    if operator in _LOWER:
        return "lower precision"
    if operator in _WIDEST:
        return "widest input"
    return "refuses" if operator == "binary_cross_entropy" else "float32"


def _exists(name: str) -> bool:
    try:
        _overload(name.removeprefix("aten::"))
    except AttributeError:  # one that Python cannot call
        return False
    return True


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


class _Casts:
    """Casts the operands of an operator as its rule says, and runs it below autocast.

    Args:
        keep: whether the copies of weights are kept.
    """

    def __init__(self, *, keep: bool = True) -> None:
        self.keep = keep
        self.copies: dict[tuple[int, int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def forget(self) -> None:
        """Casts weights anew from here on, here and in torch's own autocast."""
        self.copies.clear()
        torch.clear_autocast_cache()

    def run(self, operator: Any, rule: Rule, *args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEY):
            if rule == "refuses" and _has_float(args):
                raise RuntimeError(
                    "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to "
                    "autocast; use binary_cross_entropy_with_logits or BCEWithLogitsLoss"
                )
            target = self._target(operator, rule, args, kwargs)
            if target is not None:
                args, kwargs = tree_map(functools.partial(self.cast, target), (args, kwargs))
            with _without_onednn() if rule == "recurrent" else nullcontext():
                return operator(*args, **kwargs)

    def _target(self, operator: Any, rule: Rule, args: Any, kwargs: Any) -> torch.dtype | None:
        if rule in ("lower precision", "recurrent"):
            return torch.get_autocast_dtype("cpu")  # a model's own autocast has its own
        if rule == "float32":
            name = operator._schema.name.removeprefix("aten::")
            given = kwargs.get("dtype") or any(isinstance(a, torch.dtype) for a in args)
            return None if name in _SETS_ITS_RESULT and given else torch.float32
        floats = [t.dtype for t in _tensors((args, kwargs)) if t.is_floating_point()]
        return torch.float32 if rule == "widest input" and torch.float32 in floats else None

    def cast(self, target: torch.dtype, value: Any) -> Any:
        """A floating tensor in another dtype, a float32 weight once until it is written to."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if value.dtype in (target, torch.float64) or value.device.type != "cpu":
            return value
        is_weight = value.is_leaf and value.requires_grad and not value._is_view()
        keep = self.keep and is_weight and torch.is_grad_enabled()
        if not keep or target == torch.float32:
            return value.to(target)
        key = id(value), value._version, target
        if key not in self.copies:
            self.copies[key] = value, value.to(target)
        return self.copies[key][1]


@contextmanager
def _without_onednn() -> Iterator[None]:
    """OneDNN's recurrent layers have no float16; torch's own parts do."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def _tensors(nest: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor)]


def _has_float(args: Any) -> bool:
    return any(t.is_floating_point() for t in _tensors(args))
