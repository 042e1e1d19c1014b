"""Updates that 16-bit weights do not swallow: three wrappers around a torch optimizer.

A bfloat16 weight near 1 moves in steps of 1/128 upwards and 1/256 downwards; an update smaller
than half of that is rounded away, every time.  The cure has two parts.  First compute the update
in float32: each wrapper puts a float32 copy in the place of each 16-bit parameter in the wrapped
optimizer's groups, so that the optimizer's state is float32 too.  Then round the result to the
16-bit weight, and do something about what the rounding discards:

================== =================================== ==============================
wrapper            what the rounding discards          kept between steps, bytes a
                                                       parameter
================== =================================== ==============================
MasterWeights      stays in the float32 copy           4
KahanSummation     goes into a second 16-bit tensor    2
StochasticRounding gets through by chance, in the mean 0
================== =================================== ==============================

All are built over the 16-bit parameters and used like the optimizer inside::

    optimizer = MasterWeights(torch.optim.AdamW(model.parameters(), lr=1e-4))
    ...
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

Parameters that are float32 already stay in their groups as they are.  Gradients can be changed in
float32 before the step, by `torch.amp.GradScaler` for example::

    scaler.scale(loss).backward()
    optimizer.take_gradients()  # 16-bit gradients to float32, where unscaling is exact enough
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters_of(optimizer), 1.0)
    scaler.step(optimizer)
    scaler.update()

Without `take_gradients` a GradScaler finds no gradients in the groups, and says so.  Gradients may
be float32 already (``parameter.grad_dtype = torch.float32``); sparse ones are refused.

Source: Micikevicius et al. 2018, section 3.1 (master weights); Zamirai et al. 2020 (stochastic
rounding and Kahan summation of weight updates).  Taught in the chapter "Master weights".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mpbook.formats import as_format, round_to
from mpbook.precision import WeightUpdate
from mpbook.shards import is_shared, own_part

SIXTEEN_BIT = (torch.float16, torch.bfloat16)
_HOOKS_OF_STATE = (
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class Float32Updates(torch.optim.Optimizer):
    """A torch optimizer, updating 16-bit parameters in float32: what the three cures share.

    Groups, state and defaults are those of the wrapped optimizer, so that learning-rate schedulers
    and everything else that is written for an optimizer work on the wrapper.  Like any optimizer's,
    its ``state_dict`` refers to the tensors in use, and does not hold the model's weights.

    Attributes:
        optimizer: the wrapped one.
        copies: for each 16-bit parameter the float32 one that stands for it in the groups.
        kept: for each 16-bit parameter the tensor that is kept between steps beside it, if any.

    Raises:
        TypeError: what is no torch optimizer, or wrapped already.
        ValueError: complex, integer or 8-bit parameters; parameters of which ranks hold parts, but
            for `MasterWeights`.
    """

    _TAKES_SHARDS = False

    def __init__(self, optimizer: torch.optim.Optimizer):
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer: is a {type(optimizer).__name__}, expected a torch.optim.Optimizer"
            )
        if isinstance(optimizer, Float32Updates):
            raise TypeError(f"optimizer: is wrapped in {type(optimizer).__name__} already")
        self.copies: dict[Tensor, nn.Parameter] = {}
        self.kept: dict[Tensor, Tensor] = {}
        self._wrapped_as: dict[Tensor, tuple[torch.dtype, torch.device]] = {}
        self._taken = False
        self.optimizer = optimizer
        self.__setstate__({})  # in place of super().__init__, which would make groups of its own
        self._adopt(optimizer.param_groups)

    # --- What differs -------------------------------------------------------------------------

    def _keep(self, parameter: Tensor, copy: Tensor) -> None:
        """Put into `kept` what is to be kept of a new parameter between steps."""

    def _read(self, parameter: Tensor, copy: Tensor) -> None:
        """Give the copy the value that the update starts from."""
        raise NotImplementedError

    def _write(self, parameter: Tensor, copy: Tensor) -> None:
        """Round the updated copy to the parameter."""
        raise NotImplementedError

    # --- The step -----------------------------------------------------------------------------

    @torch.no_grad()
    def take_gradients(self) -> list[Tensor]:
        """Copy the 16-bit gradients to float32, and return all that the update will use.

        Call it after the last ``backward`` of a step, to unscale or clip in float32; else `step`
        does.  After a step that was skipped, `zero_grad` forgets what was taken, and taking again
        overwrites it.  ``parameter.grad`` of 16-bit parameters stays as it is.

        Raises:
            ValueError: a sparse gradient of a 16-bit parameter.
            RuntimeError: a parameter that was moved or cast after it was wrapped.
        """
        self._check_in_place()
        for parameter in self.copies:
            if parameter.grad is not None and parameter.grad.layout != torch.strided:
                raise ValueError(
                    f"gradients: one of shape {tuple(parameter.shape)} is {parameter.grad.layout}, "
                    "expected a dense one; build the nn.Embedding with sparse=False"
                )
        for parameter, copy in self.copies.items():
            gradient = parameter.grad
            copy.grad = None if gradient is None else gradient.to(torch.float32, copy=True)
        self._taken = True
        return [p.grad for p in parameters_of(self) if p.grad is not None]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update in float32, then round to the 16-bit weights; return what the closure returned.

        Args:
            closure: computes the loss and its gradients again, as for any torch optimizer.  One
                that moves the weights in between, as L-BFGS does, is evaluated at the rounded
                weights.

        Raises:
            RuntimeError: a parameter that was moved or cast after it was wrapped.
        """
        if closure is None and not self._taken:
            self.take_gradients()
        for parameter, copy in self.copies.items():
            self._read(parameter, copy)
        if closure is None:
            loss = self.optimizer.step()
        else:
            loss = self.optimizer.step(self._in_16_bit(closure))
        for parameter, copy in self.copies.items():
            self._write(parameter, copy)
            copy.grad = None
            self._release(parameter, copy)
        self._taken = False
        return loss

    def _in_16_bit(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, evaluated at the 16-bit weights, leaving its gradients in float32."""
        moved = False

        def evaluate() -> Any:
            nonlocal moved
            if moved:
                with torch.no_grad():
                    for parameter, copy in self.copies.items():
                        self._write(parameter, copy)
            moved = True
            with torch.enable_grad():
                loss = closure()
            self.take_gradients()
            return loss

        return evaluate

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the parameters, or set them to 0, and forget the float32 ones."""
        for parameter in self._wrapped_as:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.detach_().zero_()
        for copy in self.copies.values():
            copy.grad = None
        self._taken = False

    # --- The parameters -----------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as `torch.optim.Optimizer.add_param_group` does."""
        self.optimizer.add_param_group(param_group)
        try:
            self._adopt(self.param_groups[-1:])
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def _adopt(self, groups: list[dict[str, Any]]) -> None:
        """Put float32 copies in the place of 16-bit parameters, and their state in float32."""
        new = dict.fromkeys(chain.from_iterable(group["params"] for group in groups))
        for parameter in new:
            self._check(parameter)
        for parameter in new:
            self._wrapped_as[parameter] = parameter.dtype, parameter.device
            if parameter.dtype in SIXTEEN_BIT:
                copy = nn.Parameter(parameter.float(), requires_grad=parameter.requires_grad)
                self.copies[parameter] = copy
                if parameter in self.state:
                    self.state[copy] = in_float32(self.state.pop(parameter))
                self._keep(parameter, copy)
                self._release(parameter, copy)
        for group in groups:  # in place: torch.optim.LBFGS holds on to the list
            group["params"][:] = [self.copies.get(p, p) for p in group["params"]]

    def _release(self, parameter: Tensor, copy: Tensor) -> None:
        """Free the memory of a copy that is not kept between steps."""
        if self.kept.get(parameter) is not copy:
            # A view of one NaN has the shape that gradients are checked against.
            copy.data = copy.new_full((), math.nan).expand(copy.shape)

    def _check(self, parameter: Tensor) -> None:
        """Refuse a parameter that cannot be wrapped."""
        if parameter.dtype not in (*SIXTEEN_BIT, torch.float32, torch.float64):
            raise ValueError(
                f"parameters: one of shape {tuple(parameter.shape)} is {parameter.dtype}, "
                "expected torch.float16, bfloat16, float32 or float64"
            )
        if is_shared(parameter) and not self._TAKES_SHARDS:
            # What stands for it during an update is put there by .data, which a DTensor ignores.
            raise ValueError(
                f"parameters: one of shape {tuple(parameter.shape)} is sharded, as by fully_shard, "
                f"which {type(self).__name__} does not update; use MasterWeights, "
                'weight_update="master_weights" of a precision'
            )
        if parameter in self.copies:  # of others the wrapped optimizer knows
            raise ValueError("param_group: some parameters are in another group already")

    def _check_in_place(self) -> None:
        for parameter, (dtype, device) in self._wrapped_as.items():
            if (parameter.dtype, parameter.device) != (dtype, device):
                raise RuntimeError(
                    f"parameters: one of shape {tuple(parameter.shape)} was {dtype} on {device} "
                    f"when it was wrapped and is {parameter.dtype} on {parameter.device}; move and "
                    "cast the model first, then build the optimizer"
                )

    # --- Saving and going on ------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state, and what this one keeps beside the weights."""
        kept = [tensor.detach() for tensor in self.kept.values()]
        own = {"wrapper": type(self).__name__, "parameters": self._described(), "kept": kept}
        return {**self.optimizer.state_dict(), **own}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state; the model's weights are to be loaded as well.

        Raises:
            ValueError: the state of another kind of optimizer, or of other parameters.
        """
        self._check_saved(state_dict.get("wrapper"), state_dict.get("parameters", []))
        self.optimizer.load_state_dict(state_dict)
        for kept, saved in zip(self.kept.values(), state_dict["kept"], strict=True):
            kept.copy_(saved)

    def _check_saved(self, wrapper: str | None, parameters: list[str]) -> None:
        """Refuse the state of another kind of optimizer, or of other parameters."""
        if wrapper != type(self).__name__:
            saved = wrapper or "an optimizer that was not wrapped"
            raise ValueError(f"state_dict: is of {saved}, expected of {type(self).__name__}")
        expected = self._described()
        if len(parameters) != len(expected):
            raise ValueError(
                f"state_dict: is of {len(parameters)} parameters, expected {len(expected)}"
            )
        for index, (saved, mine) in enumerate(zip(parameters, expected, strict=True)):
            if saved != mine:
                raise ValueError(f"state_dict: parameter {index} was {saved}, expected {mine}")

    def _described(self) -> list[str]:
        """Dtype and shape of each parameter."""
        return [f"{p.dtype} {tuple(p.shape)}" for p in self._wrapped_as]

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle needs: all but the hooks and a scheduler's patch of `step`."""
        return without_hooks(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # hooks of its own for the step
        for name in _HOOKS_OF_STATE:  # the wrapped optimizer's for its state
            setattr(self, name, getattr(self.optimizer, name))

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The wrapped optimizer's groups, in which float32 copies stand for 16-bit parameters."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The wrapped optimizer's state, in float32."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The wrapped optimizer's default options."""
        return self.optimizer.defaults


class MasterWeights(Float32Updates):
    """The float32 weights are kept, and the 16-bit ones are their rounded image.

    4 bytes more a parameter.  A weight that is changed from outside, by ``model.load_state_dict``
    for example, is taken over at the next step.  Source: Micikevicius et al. 2018, section 3.1.

    >>> weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    >>> optimizer = MasterWeights(torch.optim.SGD([weight], lr=2**-10))
    >>> weight.grad = torch.ones_like(weight)
    >>> for _ in range(4):
    ...     optimizer.step()
    >>> weight.item(), optimizer.copies[weight].item()
    (0.99609375, 0.99609375)
    """

    _TAKES_SHARDS = True

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._versions: dict[Tensor, int] = {}
        super().__init__(optimizer)

    def _keep(self, parameter: Tensor, copy: Tensor) -> None:
        self.kept[parameter] = copy
        self._versions[parameter] = parameter._version

    def _read(self, parameter: Tensor, copy: Tensor) -> None:
        if parameter._version != self._versions[parameter]:  # someone else wrote to it
            ours, theirs = own_part(copy), own_part(parameter)
            ours.copy_(torch.where(ours.to(theirs.dtype) != theirs, theirs, ours))

    def _write(self, parameter: Tensor, copy: Tensor) -> None:
        parameter.copy_(copy)
        self._versions[parameter] = parameter._version

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state, master weights included."""
        super().load_state_dict(state_dict)
        self._versions = {parameter: parameter._version for parameter in self.copies}


class StochasticRounding(Float32Updates):
    """The update starts from the 16-bit weight, and the result is rounded up or down by chance.

    Up with a probability of the distance to the number below, in units of the gap between the two,
    so the mean is right, and small updates get through by and by.  No memory is kept between steps.
    Source: Zamirai et al. 2020.

    Args:
        optimizer: over the 16-bit parameters.
        generator: draws the bits, on the parameters' device.

    Raises:
        ValueError: a generator on another device than the parameters.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, generator: torch.Generator):
        self.generator = generator
        super().__init__(optimizer)

    def _check(self, parameter: Tensor) -> None:
        super()._check(parameter)
        on_device = parameter.device.type == self.generator.device.type
        if parameter.dtype in SIXTEEN_BIT and not on_device:
            raise ValueError(
                f"generator: is on {self.generator.device}, expected {parameter.device}, where the "
                "parameters are"
            )

    def _read(self, parameter: Tensor, copy: Tensor) -> None:
        copy.data = parameter.float()

    def _write(self, parameter: Tensor, copy: Tensor) -> None:
        rounded = round_to(
            copy,
            as_format(parameter.dtype),
            rounding="stochastic",
            overflow="inf",
            generator=self.generator,
        )
        parameter.copy_(rounded)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state and the generator's."""
        return {**super().state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state, the generator's included."""
        super().load_state_dict(state_dict)
        self.generator.set_state(state_dict["generator"].cpu())


class KahanSummation(Float32Updates):
    """A second 16-bit tensor keeps what rounding the weight discards, for the next step to add.

    2 bytes more a parameter.  The sum of weight and compensation has about twice the digits of the
    weight, not more: in bfloat16 updates below 2**-18 of the weight are lost in the compensation,
    as they would be below 2**-9 without one.  In float16 it cannot hold less than 2**-24 besides.

    Kahan's own formulas stay in 16 bits all along: they round the compensated update before they
    add it, where this rounds the new compensation after.  Wherever those two roundings are exact
    the results are the same, bit for bit.  Source: Zamirai et al. 2020; Kahan 1965.
    """

    def _keep(self, parameter: Tensor, copy: Tensor) -> None:
        self.kept[parameter] = torch.zeros_like(parameter)

    def _read(self, parameter: Tensor, copy: Tensor) -> None:
        copy.data = parameter.float() + self.kept[parameter]

    def _write(self, parameter: Tensor, copy: Tensor) -> None:
        parameter.copy_(copy)
        self.kept[parameter].copy_(copy - parameter)  # exact before it is rounded


def in_float32(state: Any) -> Any:
    """A nest of dicts, lists and tuples with every 16-bit tensor in float32."""
    if isinstance(state, Tensor):
        return state.float() if state.dtype in SIXTEEN_BIT else state
    if isinstance(state, dict):
        return {key: in_float32(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(in_float32, state))
    return state


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters in an optimizer's groups, each once; those of a wrapper are float32."""
    in_groups = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    return list(dict.fromkeys(in_groups))


def without_hooks(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's attributes, but for hooks and the `step` that a scheduler has patched."""
    return {
        name: value
        for name, value in vars(optimizer).items()
        if name != "step" and not name.startswith("_optimizer_")
    }


def cured(
    optimizer: torch.optim.Optimizer, weight_update: WeightUpdate, *, seed: int
) -> torch.optim.Optimizer:
    """An optimizer whose updates are stored as a precision says; the same one for ``"plain"``.

    Args:
        optimizer: over the parameters.
        weight_update: as in `mpbook.precision.Precision`.
        seed: of stochastic rounding.
    """
    match weight_update:
        case "master_weights":
            return MasterWeights(optimizer)
        case "stochastic_rounding":
            device = parameters_of(optimizer)[0].device
            generator = torch.Generator(device).manual_seed(seed)
            return StochasticRounding(optimizer, generator=generator)
        case "kahan_summation":
            return KahanSummation(optimizer)
    return optimizer
