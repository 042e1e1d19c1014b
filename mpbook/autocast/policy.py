"""What autocast does to each operator: asked of this device and this torch, not copied from a list.

Inside `torch.autocast` an operator meets one of a few fates:

* *lower precision*: whatever comes in is cast to float16 or bfloat16.  Products of matrices, which
  tensor cores speed up.
* *float32*: 16-bit inputs are cast up, or the result is.  What overflows or sums up rounding
  errors.
* *widest input*: takes several tensors that must agree, so all are cast to the widest dtype.
* *as its inputs*: no list names it, so it runs as it would without autocast.  Most operators.
* *its parts follow their own rules*: it is made of operators that meet different fates.  The one
  that surprises is ``cross_entropy`` on CUDA: the result is float32, and the log-probabilities
  before it were rounded to 16 bits.  It hands ``log_softmax`` the dtype of the logits, and CUDA's
  rule for ``log_softmax`` sets float32 only where no dtype is given.
* *refuses*: raises, because it would go wrong.

Which operator meets which fate differs between CPU and CUDA and from one torch to the next, and the
lists in the documentation differ from both.  So `measure_policy` runs each operator on float32,
float16, bfloat16 and a mixture, inside autocast and outside, and compares what comes out.
`side_by_side` lays devices and versions next to each other.

What can be seen: the dtype that goes in and comes out, the dtypes of the operands that reach
kernels once autocast has cast them, and those of what the kernels return.  What cannot: in which
dtype a kernel adds up internally.  Most 16-bit kernels accumulate in float32; none says so in its
dtypes.  An operator that natively promotes mixed inputs and one that autocast promotes look alike,
except that autocast refuses the 16-bit dtype that is not its own.

The rules for CUDA are compiled into every torch.  ``tensors="fake"`` asks for them without a GPU:
tensors that have a device and a dtype but no data pass the same dispatcher.  No kernel runs, so
what only a kernel would refuse is not refused, attention may take another path than on a GPU, and
a few operators cannot be asked.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpbook import device as devices
from mpbook.autocast.operators import OPERATORS, Operator, Shape
from mpbook.notebook import Table

Category = Literal[
    "lower precision",
    "float32",
    "widest input",
    "as its inputs (not in autocast's lists)",
    "refuses",
    "its parts follow their own rules",
    "did not run",
]
NOT_RECORDED = "not recorded yet"


@dataclass(frozen=True)
class Observation:
    """One operator on inputs of one dtype, inside autocast and outside.

    ``computed_in`` has the dtypes of its kernels' operands, ``rounded_to`` those of the kernels'
    results: a kernel that takes 16 bits and returns float32 has rounded nothing.  Dtypes are names
    without ``torch.``; an empty one stands for a call that raised.
    """

    inputs: str
    output: str
    computed_in: tuple[str, ...]
    output_without_autocast: str
    error: str = ""
    rounded_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """What was observed of one operator, and the category that follows from it."""

    operator: str
    family: str
    autocast_dtype: str
    observations: tuple[Observation, ...]

    @property
    def category(self) -> Category:
        """The operator's fate, derived from the observations."""
        return categorise(self.observations, self.autocast_dtype)

    @property
    def error(self) -> str:
        """The first line of what autocast said if it refused float32 inputs, else empty."""
        return self.on("float32").error

    def on(self, inputs: str) -> Observation:
        """The observation for ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"mixed"``.

        Raises:
            ValueError: inputs that this operator was not run on.
        """
        for seen in self.observations:
            if seen.inputs == inputs:
                return seen
        known = ", ".join(seen.inputs for seen in self.observations)
        raise ValueError(f'inputs="{inputs}": {self.operator} was run on {known}')


@dataclass(frozen=True)
class Policy:
    """What autocast does on one device with one torch, and how that was found out.

    ``tensors`` is ``"real"`` where kernels ran and ``"fake"`` where only the dispatcher was asked.
    """

    device: str
    device_type: str
    torch: str
    autocast_dtype: str
    tensors: str
    rules: tuple[Rule, ...]

    def of(self, operator: str) -> Rule:
        """What is known of one operator.

        Raises:
            ValueError: an operator that was not measured.
        """
        for rule in self.rules:
            if rule.operator == operator:
                return rule
        alike = [r.operator for r in self.rules if operator.lower() in r.operator.lower()]
        hint = ", ".join(alike) or "a name from policy.table()"
        raise ValueError(f'operator="{operator}": not measured; expected {hint}')

    def table(self, filter: str = "") -> Table:
        """One row for each operator and dtype of its inputs.

        Args:
            filter: keep rows whose operator, family or category contains this, in either case.

        Raises:
            ValueError: a filter that keeps nothing.
        """
        wanted = filter.lower()
        kept = [
            rule
            for rule in self.rules
            if any(wanted in text.lower() for text in (rule.operator, rule.family, rule.category))
        ]
        if not kept:
            raise ValueError(f'filter="{filter}": matches no operator, family or category')
        rows = [
            (rule.operator, seen.inputs, seen.output or f"raises: {seen.error}",
             ", ".join(seen.computed_in) or "-", ", ".join(seen.rounded_to) or "-", rule.category)
            for rule in kept
            for seen in rule.observations
        ]  # fmt: skip
        header = ["operator", "inputs", "output", "kernels take", "kernels return", "autocast"]
        return Table(header, rows, caption=self.caption)

    @property
    def caption(self) -> str:
        """Device, torch and autocast's dtype, and whether kernels ran, in a line."""
        how = "" if self.tensors == "real" else "; rules of the dispatcher, no kernel ran"
        return f"{self.device}, torch {self.torch}, autocast to {self.autocast_dtype}{how}"

    def as_dict(self) -> dict[str, Any]:
        """Provenance and observations in what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Policy:
        """The policy that `as_dict` wrote, read back from JSON or not.

        Raises:
            ValueError: a dictionary that lacks a field or has one too many.
        """
        try:
            rules = [
                Rule(**{**rule, "observations": tuple(map(_observation, rule["observations"]))})
                for rule in saved["rules"]
            ]
            return cls(**{**saved, "rules": tuple(rules)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"saved: not what Policy.as_dict() writes: {error}") from error


def _observation(saved: Mapping[str, Any]) -> Observation:
    dtypes = {name: tuple(saved[name]) for name in ("computed_in", "rounded_to")}
    return Observation(**{**saved, **dtypes})


def categorise(observations: Sequence[Observation], autocast_dtype: str) -> Category:
    """The category that the observations of one operator are evidence for.

    >>> to_half = Observation("float32", "float16", ("float16",), "float32")
    >>> categorise([to_half, Observation("float16", "float16", ("float16",), "float16")], "float16")
    'lower precision'
    """
    by_inputs = {seen.inputs: seen for seen in observations}
    full, low = by_inputs["float32"], by_inputs[autocast_dtype]
    if not full.output_without_autocast:
        return "did not run"
    if not full.output:
        return "refuses"
    if full.output == autocast_dtype != full.output_without_autocast:
        return "lower precision"
    if _is_full(low.output) and not _is_full(low.output_without_autocast):
        # The dtype of the result hides it when a part before the last has rounded to 16 bits.
        return "its parts follow their own rules" if autocast_dtype in low.rounded_to else "float32"
    if _promotes(by_inputs):
        return "widest input"
    if autocast_dtype in full.computed_in:
        return "its parts follow their own rules"
    return "as its inputs (not in autocast's lists)"


def _is_full(dtype: str) -> bool:
    return dtype in ("float32", "complex64")


def _promotes(by_inputs: Mapping[str, Observation]) -> bool:
    """Whether autocast, and not the operator itself, brings mixed inputs to one dtype."""
    mixed = by_inputs.get("mixed")
    if mixed and mixed.output == "float32" != mixed.output_without_autocast:
        return True
    return any("autocast" in seen.error for seen in by_inputs.values())


# --- Measuring --------------------------------------------------------------------------------


def measure_policy(
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    tensors: Literal["real", "fake"] = "real",
    operators: Sequence[Operator] = OPERATORS,
) -> Policy:
    """Run every operator inside autocast and outside, and note the dtypes.

    Args:
        device: ``"cpu"``, ``"cuda"`` or None for the best there is.
        dtype: that autocast casts to, float16 or bfloat16; None for the device's default.
        tensors: ``"real"``, or ``"fake"`` to ask the dispatcher alone, for which the device need
            not be there.
        operators: what to run.

    Raises:
        RuntimeError, ValueError: as `mpbook.device.pick`, if the tensors are real.
        ValueError: another dtype, another kind of tensors.
    """
    if tensors not in ("real", "fake"):
        raise ValueError(f'tensors={tensors!r}: expected "real" or "fake"')
    fake = tensors == "fake"
    chosen = torch.device(device or "cuda") if fake else devices.pick(device)
    lower = dtype or torch.get_autocast_dtype(chosen.type)
    if lower not in (torch.float16, torch.bfloat16):
        raise ValueError(f"dtype={dtype}: autocast casts to torch.float16 or torch.bfloat16")
    with _quiet_and_repeatable(chosen, fake=fake):
        rules = tuple(_measure(operator, chosen, lower, fake=fake) for operator in operators)
    name = chosen.type if fake else devices.name(chosen)
    return Policy(name, chosen.type, torch.__version__, dtype_name(lower), tensors, rules)


@contextmanager
def _quiet_and_repeatable(device: torch.device, *, fake: bool) -> Iterator[None]:
    """No warnings of half-finished dtypes, the reader's random numbers untouched, no gradients."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        on_gpu = device.type == "cuda" and not fake
        stack.enter_context(torch.random.fork_rng([device] if on_gpu else []))
        stack.enter_context(torch.no_grad())
        if fake:
            stack.enter_context(FakeTensorMode())
        log.setLevel(logging.CRITICAL)  # an operator that refuses is a result, not news
        try:
            yield
        finally:
            log.setLevel(level)


def _measure(operator: Operator, device: torch.device, lower: torch.dtype, *, fake: bool) -> Rule:
    kinds = {dtype_name(d): [d] * len(operator.shapes) for d in (torch.float32, torch.float16)}
    kinds["bfloat16"] = [torch.bfloat16] * len(operator.shapes)
    if len(operator.shapes) > 1:
        kinds["mixed"] = [torch.float32] + [lower] * (len(operator.shapes) - 1)
    seen = []
    for inputs, dtypes in kinds.items():
        tensors = [
            _input(shape, dtype, device, fake=fake)
            for shape, dtype in zip(operator.shapes, dtypes, strict=True)
        ]
        with autocast_set(device.type, lower, enabled=False):
            without = _run(operator.call, tensors).output
        with autocast_set(device.type, lower, enabled=True):
            seen.append(
                replace(_run(operator.call, tensors, inputs), output_without_autocast=without)
            )
    return Rule(operator.name, operator.family, dtype_name(lower), tuple(seen))


def _input(shape: Shape, dtype: torch.dtype, device: torch.device, *, fake: bool) -> Tensor:
    """Numbers between 0.2 and 0.8; square matrices get a heavy diagonal and can be decomposed."""
    if fake:
        return torch.empty(shape, dtype=dtype, device=device)
    numbers = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    if len(shape) == 2 and shape[0] == shape[1]:
        numbers += 4 * torch.eye(shape[0])
    return numbers.to(device, dtype)


@contextmanager
def autocast_set(device_type: str, dtype: torch.dtype, *, enabled: bool) -> Iterator[None]:
    """Autocast switched on or off, also for a device that is not there.

    `torch.autocast` switches itself off for a GPU that is absent; fake tensors want it on.
    """
    before = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    torch.set_autocast_enabled(device_type, enabled)
    torch.set_autocast_dtype(device_type, dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device_type, before[0])
        torch.set_autocast_dtype(device_type, before[1])


def _run(call: Callable[..., Any], tensors: Sequence[Tensor], inputs: str = "") -> Observation:
    """What one call gave, and what went into and came out of its kernels, or what was raised."""
    kernels = _Kernels()
    try:
        with kernels:
            result = call(*tensors)
    except Exception as error:  # whatever an operator raises is what we want to know
        return Observation(inputs, "", (), "", str(error).splitlines()[0])
    while isinstance(result, tuple):
        result = result[0]
    dtypes = tuple(sorted(kernels.operands)), tuple(sorted(kernels.results))
    return Observation(inputs, dtype_name(result.dtype), dtypes[0], "", rounded_to=dtypes[1])


class _Kernels(TorchDispatchMode):
    """Collects the floating dtypes that kernels are given and return, below autocast.

    Casts, views, copies and fresh tensors compute nothing, so their dtypes do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operands: set[str] = set()
        self.results: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operator of torch."""
        result = func(*args, **(kwargs or {}))
        if computes(func):
            self.operands |= _floating_dtypes((args, kwargs))
            self.results |= _floating_dtypes(result)
        return result


def _floating_dtypes(nest: Any) -> set[str]:
    leaves = (leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor))
    return {dtype_name(leaf.dtype) for leaf in leaves if leaf.is_floating_point()}


def computes(func: Any) -> bool:
    """Whether an operator of torch computes: not a cast, a view, a copy or a fresh tensor."""
    space, _, name = func._schema.name.partition("::")
    if space != "aten" or func.is_view:
        return False
    return name not in ("_to_copy", "clone", "copy_") and not name.endswith("_like")


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype without ``torch.``."""
    return str(dtype).removeprefix("torch.")


# --- Comparing --------------------------------------------------------------------------------


def side_by_side(policies: Mapping[str, Policy | None], *, only_different: bool = False) -> Table:
    """Policies next to each other: one column each, and a mark where they differ.

    Args:
        policies: by column title, a policy, or None where the device has not been measured.
        only_different: leave out operators on which all recorded policies agree.

    Raises:
        ValueError: no policy at all.
    """
    recorded = [policy for policy in policies.values() if policy is not None]
    if not recorded:
        raise ValueError(f"policies={dict(policies)!r}: expected at least one that is recorded")
    rows = []
    for operator in dict.fromkeys(rule.operator for policy in recorded for rule in policy.rules):
        cells = [_cell(policy, operator) for policy in policies.values()]
        differ = len(set(cells) - {NOT_RECORDED, "did not run"}) > 1
        if differ or not only_different:
            rows.append((operator, *cells, "differs" if differ else ""))
    return Table(["operator", *policies, ""], rows)


def _cell(policy: Policy | None, operator: str) -> str:
    rules = policy.rules if policy else ()
    return next((rule.category for rule in rules if rule.operator == operator), NOT_RECORDED)
