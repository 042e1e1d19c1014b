"""Updates that 16-bit weights do not swallow.

A bfloat16 weight near 1 can only move in steps of 1/128; an update smaller than half of that is
rounded away, every time.  `Float32Updates` gives any optimizer float32 weights to work on, and
writes the result back to the 16-bit weights in one of two ways: rounded to the nearest, beside a
**master copy** that remembers what was rounded away, or **stochastically**, without a copy, so that
small updates get through on average.

Source: Micikevicius et al. 2018, section 3.1 (master weights); Zamirai et al. 2020 (stochastic
rounding of updates).  Its chapter is not written yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mpbook.formats import as_format, round_to

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Float32Updates:
    """Any torch optimizer, updating 16-bit parameters in float32.

    Args:
        parameters: the model's parameters, float16 or bfloat16.
        make_optimizer: builds the optimizer over the float32 copies that it is given.
        keep: ``"master_copy"`` keeps the float32 weights between steps; ``"nothing"`` reads them
            from the 16-bit weights at each step, so that only the rounding of the result counts.
        rounding: of the 16-bit weights that are written back.
        generator: draws the bits of stochastic rounding, on the parameters' device.

    Raises:
        ValueError: no parameters.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        make_optimizer: MakeOptimizer,
        *,
        keep: Literal["master_copy", "nothing"] = "master_copy",
        rounding: Literal["nearest-even", "stochastic"] = "nearest-even",
        generator: torch.Generator | None = None,
    ):
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError("parameters: expected at least one")
        self.copies = [nn.Parameter(p.detach().float().clone()) for p in self.parameters]
        self.optimizer = make_optimizer(self.copies)
        self.keep, self.rounding, self.generator = keep, rounding, generator

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's groups, to set the learning rate in."""
        return self.optimizer.param_groups

    def take_gradients(self) -> list[Tensor]:
        """Move the 16-bit gradients to the float32 copies, and return those."""
        for parameter, copy in zip(self.parameters, self.copies, strict=True):
            copy.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        return [copy.grad for copy in self.copies if copy.grad is not None]

    @torch.no_grad()
    def step(self) -> None:
        """Update in float32, then write the 16-bit weights."""
        if self.keep == "nothing":
            for parameter, copy in zip(self.parameters, self.copies, strict=True):
                copy.copy_(parameter)
        self.optimizer.step()
        for parameter, copy in zip(self.parameters, self.copies, strict=True):
            parameter.copy_(self._rounded(copy, parameter.dtype))

    def _rounded(self, copy: Tensor, dtype: torch.dtype) -> Tensor:
        if self.rounding == "nearest-even":
            return copy
        return round_to(
            copy,
            as_format(dtype),
            rounding="stochastic",
            overflow="inf",
            generator=self.generator,
        )

    def zero_grad(self) -> None:
        """Forget the gradients of parameters and copies."""
        for tensor in (*self.parameters, *self.copies):
            tensor.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, the float32 weights and the generator's state."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "copies": [copy.detach() for copy in self.copies],
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state."""
        self.optimizer.load_state_dict(state["optimizer"])
        for copy, saved in zip(self.copies, state["copies"], strict=True):
            copy.copy_(saved)
        if self.generator is not None:
            self.generator.set_state(state["generator"].cpu())
