"""What an optimizer keeps for parameters of given shapes, and what its step allocates.

`mpbook.optimizers` says by which rule each named optimizer updates which parameters; here the rules
become bytes.  Taught in the chapter "Memory".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mpbook.optimizers import NamedOptimizer, UpdateRule
from mpbook.precision import Precision

Shapes = Sequence[tuple[int, ...]]


def _by_rule(
    shapes: Shapes, hidden: Shapes, optimizer: NamedOptimizer
) -> list[tuple[UpdateRule, list[tuple[int, ...]]]]:
    """The shapes of the parameters that each rule of an optimizer updates."""
    if optimizer.hidden_rule is None:
        return [(optimizer.rule, list(shapes))]
    rest = list((Counter(shapes) - Counter(hidden)).elements())
    return [(optimizer.rule, rest), (optimizer.hidden_rule, list(hidden))]


def optimizer_state(
    shapes: Shapes, hidden: Shapes, precision: Precision, optimizer: NamedOptimizer
) -> int:
    """Bytes that stay from step to step.

    Args:
        shapes: of all parameters.
        hidden: of those among them that are hidden matrices.
        precision: in whose dtype the optimizer updates.
        optimizer: by which rules.
    """
    itemsize, total = precision.optimizer_state_dtype.itemsize, 0
    for rule, some in _by_rule(shapes, hidden, optimizer):
        total += sum(_kept(rule, shape, itemsize) for shape in some)
        total += 4 * len(some) if rule.counts_steps else 0  # the count is a float32
    return total


def _kept(rule: UpdateRule, shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes that a rule keeps for one parameter, but for the count of steps."""
    count = math.prod(shape)
    if rule.keeps == "factors" and len(shape) > 1:
        return itemsize * (math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1])
    if rule.keeps == "8 bits":
        small = count < 4096
        return rule.state_tensors * (4 * count if small else count + 4 * math.ceil(count / 256))
    return rule.state_tensors * itemsize * count


def update_temporaries(
    shapes: Shapes,
    hidden: Shapes,
    precision: Precision,
    optimizer: NamedOptimizer,
    update_loop: str,
) -> int:
    """Bytes that the step allocates, rule after rule, beside a cure's float32 copies."""
    itemsize = precision.optimizer_state_dtype.itemsize
    most = 0
    for rule, some in _by_rule(shapes, hidden, optimizer):
        sizes = list(map(math.prod, some))
        if rule.allocates == "denominators":
            at_once = {"for-loop": 2 * max(sizes, default=0), "foreach": sum(sizes), "fused": 0}
            most = max(most, at_once[update_loop] * itemsize)
        elif rule.allocates == "estimates":
            matrices = (math.prod(shape) for shape in some if len(shape) > 1)
            most = max(most, max(matrices, default=0) * itemsize)
        elif rule.allocates == "Newton-Schulz":
            most = max(most, *(_newton_schulz(shape, itemsize) for shape in some), 0)
    copied = precision.cure.copied_bytes if precision.cure else 0
    return most + copied * sum(map(math.prod, shapes))


def _newton_schulz(shape: tuple[int, ...], itemsize: int) -> int:
    """The update as it was, and in bfloat16 the iterate, the next one and two square matrices."""
    return (itemsize + 2 * 2) * math.prod(shape) + 2 * 2 * min(shape) ** 2
