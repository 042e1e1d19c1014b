"""Loss scaling: move the gradients to where float16 has numbers, and back.

Multiply the loss by S, and the chain rule multiplies every gradient by S, away from float16's
smallest subnormal; divide by S before the update, in float32, and nobody knows.  Three scalers
share the calls of one step:

    scaler.scale(loss).backward()  # gradients, times S
    scaler.unscale_(optimizer)     # gradients; clip them here, if at all
    scaler.step(optimizer)         # unless one of them is infinite or NaN
    scaler.update()                # a lower S after an overflow, a higher one after many steps

* `StaticLossScaler` (in `mpbook.loss_scaling.static`) keeps S.
* `DynamicLossScaler` (`mpbook.loss_scaling.dynamic`) multiplies S by ``backoff_factor`` after each
  step with an overflow, and by ``growth_factor`` after ``growth_interval`` steps without one.
* `NoLossScaler` (`mpbook.loss_scaling.disabled`) leaves out all but the calls, so that one loop
  serves every precision.

What they find in the gradients is in `mpbook.loss_scaling.gradients`.

The dynamic one is `torch.amp.GradScaler`, step for step and bit for bit; their saved states are
interchangeable, and a call is an error in the one where it is an error in the other, but for two
that GradScaler lets through: a ``fused=True`` optimizer with float16 gradients or none, and a
closure that is passed by position.  The last one is ``torch.amp.GradScaler(enabled=False)``.

Whether to step is decided in Python, so `step` waits for the device once for each optimizer, as
GradScaler does; an optimizer with ``fused=True`` decides for GradScaler in its kernel, without a
wait.  Nothing else waits: ``loss_scale`` is a Python number, where
``GradScaler.get_scale()`` waits again.  Gradients are read twice, to look for infinities and to
divide, in plain tensor operations; GradScaler has one kernel for both.

A scale that falls and falls means gradients that are infinite or NaN whatever the scale:
`nonfinite_gradients` names the parameters, after a backward pass with any scaler.  Below 2**-128
the reciprocal of a scale is infinite itself, and the product with it comes after the check: from
there on GradScaler writes infinities and NaN to the weights, and so does `DynamicLossScaler`.  A
scale that grows and grows, as with bfloat16, ends at 2**127, the largest power of two in float32.

Source: Micikevicius et al. 2018, section 3.2; `torch.amp.GradScaler` for the schedule.
Taught in the chapter "Loss scaling".
"""

from mpbook.loss_scaling.disabled import NoLossScaler
from mpbook.loss_scaling.dynamic import (
    BACKOFF_FACTOR,
    GROWTH_FACTOR,
    GROWTH_INTERVAL,
    DynamicLossScaler,
)
from mpbook.loss_scaling.gradients import (
    AnyOptimizer,
    all_finite,
    gradients_of,
    nonfinite_gradients,
)
from mpbook.loss_scaling.static import INITIAL_SCALE, StaticLossScaler

__all__ = [
    "BACKOFF_FACTOR",
    "GROWTH_FACTOR",
    "GROWTH_INTERVAL",
    "INITIAL_SCALE",
    "AnyOptimizer",
    "DynamicLossScaler",
    "NoLossScaler",
    "StaticLossScaler",
    "all_finite",
    "gradients_of",
    "nonfinite_gradients",
]
