"""The optimizers that have a name: how each is built, and what it keeps for each parameter.

This is their one home.  `mpbook.training.train(optimizer="adamw")` builds from `OPTIMIZERS`, the
memory planner and the explorers read from it what an optimizer keeps; a new one is a new entry.

An optimizer may treat *hidden matrices* by a rule of its own, as Muon does: the matrices between
the input and the output of a model (`hidden_matrices`).  Everything else follows the main rule.

Taught in the chapter "Memory".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What a named optimizer is built with.

    ``betas`` are those of Adam's rule; ``momentum`` is SGD's and Muon's, None for the optimizer's
    own default (`NamedOptimizer.momentum`).
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float | None = None


@dataclass(frozen=True)
class UpdateRule:
    """What the update of a parameter tensor keeps from step to step.

    ``state_tensors`` counts tensors of the parameter's shape; ``keeps`` says how: in the dtype that
    the optimizer updates in, in 8 bits with a float32 scale for each block of 256, or a row and a
    column in place of a matrix.  ``counts_steps`` says whether a float32 number, the count of
    steps, stands beside them.  ``allocates`` is what a step makes for itself and frees again: the
    square roots that Adam's divides by, the matrices of Muon's Newton-Schulz iteration, the product
    of Adafactor's row and column.
    """

    state_tensors: int
    counts_steps: bool = False
    allocates: Literal["nothing", "denominators", "Newton-Schulz", "estimates"] = "nothing"
    keeps: Literal["tensors", "8 bits", "factors"] = "tensors"


@dataclass(frozen=True)
class NamedOptimizer:
    """One entry of `OPTIMIZERS`.

    ``make`` builds it over a model's trainable parameters, ``rule`` says what it keeps for each,
    ``hidden_rule`` what for each of the `hidden_matrices`, if that is something else.
    ``library`` is what has to be installed besides torch to build it.
    """

    make: Callable[[nn.Module, Hyperparameters], torch.optim.Optimizer]
    rule: UpdateRule
    hidden_rule: UpdateRule | None = None
    momentum: float = 0.0
    library: str = ""

    def rule_for(self, *, hidden: bool) -> UpdateRule:
        """The rule of a hidden matrix, or of any other parameter."""
        return self.hidden_rule if hidden and self.hidden_rule is not None else self.rule


def build(
    name: str, model: nn.Module, hyperparameters: Hyperparameters | None = None
) -> torch.optim.Optimizer:
    """The optimizer of this name over the model's trainable parameters.

    Raises:
        ValueError: an unknown name, or a model that the optimizer has no use for.
        RuntimeError: an optimizer that this torch lacks.
    """
    return named(name).make(model, hyperparameters or Hyperparameters())


def named(name: str) -> NamedOptimizer:
    """The entry of this name.

    Raises:
        ValueError: an unknown name.

    >>> named("adamw").rule.state_tensors
    2
    """
    if name not in OPTIMIZERS:
        raise ValueError(f'optimizer="{name}": expected one of {", ".join(OPTIMIZERS)}')
    return OPTIMIZERS[name]


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _adamw(model: nn.Module, chosen: Hyperparameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(_trainable(model), **_adam_options(chosen))


def _adam(model: nn.Module, chosen: Hyperparameters) -> torch.optim.Optimizer:
    return torch.optim.Adam(_trainable(model), **_adam_options(chosen))


def _adam_options(chosen: Hyperparameters) -> dict[str, Any]:
    return {
        "lr": chosen.learning_rate,
        "betas": chosen.betas,
        "weight_decay": chosen.weight_decay,
    }


def _sgd(name: str) -> Callable[[nn.Module, Hyperparameters], torch.optim.Optimizer]:
    def make(model: nn.Module, chosen: Hyperparameters) -> torch.optim.Optimizer:
        return torch.optim.SGD(_trainable(model), **_momentum_options(name, chosen))

    return make


def _momentum_options(name: str, chosen: Hyperparameters) -> dict[str, Any]:
    own = OPTIMIZERS[name].momentum
    return {
        "lr": chosen.learning_rate,
        "momentum": own if chosen.momentum is None else chosen.momentum,
        "weight_decay": chosen.weight_decay,
    }


# --- Optimizers that keep less ----------------------------------------------------------------


def _adafactor(model: nn.Module, chosen: Hyperparameters) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(
        _trainable(model), lr=chosen.learning_rate, weight_decay=chosen.weight_decay
    )


def _adamw_8bit(model: nn.Module, chosen: Hyperparameters) -> torch.optim.Optimizer:
    try:
        library = importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise RuntimeError(
            'optimizer="adamw-8bit": needs bitsandbytes, which is not installed: pip install '
            "bitsandbytes; the memory planner needs it not"
        ) from error
    made: torch.optim.Optimizer = library.optim.AdamW8bit(
        _trainable(model), **_adam_options(chosen)
    )
    return made


# --- Muon -------------------------------------------------------------------------------------


def _muon(model: nn.Module, chosen: Hyperparameters) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise RuntimeError(
            f'optimizer="muon": torch {torch.__version__} has no torch.optim.Muon; it came with 2.9'
        )
    hidden = hidden_matrices(model)
    if not hidden:
        raise ValueError(
            f'optimizer="muon": {type(model).__name__} has no trainable matrix between its input '
            'and its output, and Muon updates nothing else; use "adamw"'
        )
    kept = set(hidden.values())
    rest = [p for p in _trainable(model) if p not in kept]
    return MuonWithAdamW(
        hidden.values(),
        rest,
        muon=_momentum_options("muon", chosen),
        adamw=_adam_options(chosen),
    )


def hidden_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable matrices between a model's input and its output, by name.

    The input is its `nn.Embedding` tables, or the first matrix if it has none; the output is the
    last matrix, which may be one of those tables again.  "First" and "last" go by the order in
    which the model registers its parameters.  A convolution's weight is no matrix.

    Muon is meant for these alone; embeddings, the output and vectors are left to AdamW.  Source:
    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.

    >>> layers = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    >>> list(hidden_matrices(layers))
    ['1.weight']
    """
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    matrices = [p for _, p in model.named_parameters(remove_duplicate=False) if p.dim() == 2]
    ends = {*tables, *matrices[-1:], *(() if tables else matrices[:1])}
    return {
        name: p
        for name, p in model.named_parameters()
        if p.dim() == 2 and p.requires_grad and p not in ends
    }


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` over some matrices and `torch.optim.AdamW` over the rest, as one.

    One optimizer to schedule, to unscale and clip, to wrap in `mpbook.master_weights`, to save and
    to load.  Its groups are marked by ``"use_muon"``.  Muon keeps one tensor for each matrix, the
    momentum; AdamW keeps two and a count of steps for each of the others.

    Muon's updates are scaled as ``adjust_lr_fn="match_rms_adamw"`` says, so that one learning rate
    and one weight decay serve both.  Source: Liu et al. 2025, https://arxiv.org/abs/2502.16982.
    Its Newton-Schulz iteration runs in bfloat16, whatever the weights' dtype.

    Args:
        matrices: for Muon, each of two dimensions.
        others: for AdamW; may be none.
        muon: options of `torch.optim.Muon`.
        adamw: options of `torch.optim.AdamW`.

    Raises:
        ValueError: no matrix, or one that has not two dimensions.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor] = (),
        *,
        muon: Mapping[str, Any] | None = None,
        adamw: Mapping[str, Any] | None = None,
    ):
        matching = {"adjust_lr_fn": "match_rms_adamw", **(muon or {})}
        first = torch.optim.Muon(matrices, **matching)
        groups = [{**first.param_groups[0], "use_muon": True}]
        if rest := list(others):
            second = torch.optim.AdamW(rest, **(adamw or {}))
            groups += [{**second.param_groups[0], "use_muon": False}]
        super().__init__(groups, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with ``"use_muon"``, for which AdamW or Muon has its defaults.

        Raises:
            ValueError: a group that does not say which of the two.
        """
        if "use_muon" not in param_group:
            raise ValueError('param_group: has no "use_muon", expected True or False')
        given = {name: value for name, value in param_group.items() if name != "use_muon"}
        kind = torch.optim.Muon if param_group["use_muon"] else torch.optim.AdamW
        (checked,) = kind([given]).param_groups
        super().add_param_group({**checked, "use_muon": param_group["use_muon"]})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the matrices by Muon, then the others by AdamW."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for kind, use_muon in ((torch.optim.Muon, True), (torch.optim.AdamW, False)):
            # Made anew: groups and state may have been copied, loaded or exchanged since.
            part: Any = object.__new__(kind)
            groups = [group for group in self.param_groups if group["use_muon"] == use_muon]
            part.__setstate__({"defaults": {}, "state": self.state, "param_groups": groups})
            part.step()
        return loss


# --- The table --------------------------------------------------------------------------------

_ADAM = UpdateRule(state_tensors=2, counts_steps=True, allocates="denominators")
_MOMENTUM = UpdateRule(state_tensors=1)
# A tensor of fewer than 4096 numbers is kept in float32.  Sources: Dettmers et al. 2022, and
# Optimizer2State.init_state of bitsandbytes; its blocks were of 2048 in earlier
# releases.
_ADAM_8BIT = UpdateRule(state_tensors=2, keeps="8 bits")
# Sources: Shazeer and Stern 2018, and torch.optim.Adafactor, which keeps no momentum and goes
# through the parameters one by one unless it is told otherwise.
_FACTORED = UpdateRule(state_tensors=1, counts_steps=True, allocates="estimates", keeps="factors")
_ORTHOGONAL_MOMENTUM = UpdateRule(state_tensors=1, allocates="Newton-Schulz")

OPTIMIZERS: dict[str, NamedOptimizer] = {
    "adamw": NamedOptimizer(_adamw, _ADAM),
    "adam": NamedOptimizer(_adam, _ADAM),
    "momentum": NamedOptimizer(_sgd("momentum"), _MOMENTUM, momentum=0.9),
    "sgd": NamedOptimizer(_sgd("sgd"), UpdateRule(state_tensors=0)),
    "adamw-8bit": NamedOptimizer(_adamw_8bit, _ADAM_8BIT, library="bitsandbytes"),
    "adafactor": NamedOptimizer(_adafactor, _FACTORED),
    "muon": NamedOptimizer(_muon, _ADAM, hidden_rule=_ORTHOGONAL_MOMENTUM, momentum=0.95),
}
"""The optimizers by name: ``"momentum"`` is SGD with momentum, ``"sgd"`` SGD without (unless it is
asked for)."""

BUILT_BY_TORCH: tuple[str, ...] = tuple(name for name, o in OPTIMIZERS.items() if not o.library)
"""Those that need no other library."""
