"""Stand-ins for what other libraries wrap around torch's optimizers, built as those are built."""

import torch
from torch import nn

from mpbook.master_weights import KahanSummation, MasterWeights, StochasticRounding


class Accelerated(torch.optim.Optimizer):
    """accelerate's `AcceleratedOptimizer` 1.15: not initialised as an optimizer, so without hooks.

    It steps only when gradients are complete, and lets a scaler step, which may skip, through a
    patch of the inner ``step`` that it takes back afterwards.
    """

    def __init__(self, optimizer, scaler=None):
        self.optimizer, self.scaler, self.complete = optimizer, scaler, True
        self.called = self.skipped = False
        if scaler is not None:
            self.original = optimizer.step
            self.patched = self.noting(optimizer.step)

    def noting(self, method):
        def step(*arguments, **options):
            self.called = True
            return method(*arguments, **options)

        return step

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    @property
    def state(self):
        return self.optimizer.state

    @property
    def defaults(self):
        return self.optimizer.defaults

    def zero_grad(self, set_to_none=True):
        if self.complete:
            self.optimizer.zero_grad(set_to_none)

    def step(self, closure=None):
        if not self.complete:
            return
        if self.scaler is None:
            self.optimizer.step(closure)
            return
        self.optimizer.step = self.patched
        self.scaler.step(self.optimizer, closure)
        self.scaler.update()
        self.skipped, self.called = not self.called, False
        self.optimizer.step = self.original


class Fabric:
    """Lightning Fabric's wrapper: no optimizer by birth, but of a class that claims to be one."""

    def __init__(self, optimizer):
        self._optimizer = optimizer
        name = f"Fabric{type(optimizer).__name__}"
        self.__class__ = type(name, (type(self), type(optimizer)), {})

    def __getattr__(self, name):
        return getattr(self._optimizer, name)

    def zero_grad(self, *arguments, **options):
        self._optimizer.zero_grad(*arguments, **options)

    def step(self, closure=None):
        return self._optimizer.step(closure)


class Copied:
    """Lightning's wrapper of old: it takes over the attributes too, and so the hooks of the other.

    It clamps the weights after the step, which only a watch of its own step can see.
    """

    def __init__(self, optimizer):
        self.__dict__.update(vars(optimizer))
        self._optimizer = optimizer

    def zero_grad(self, set_to_none=True):
        self._optimizer.zero_grad(set_to_none)

    def register_step_pre_hook(self, hook):
        return self._optimizer.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook):
        return self._optimizer.register_step_post_hook(hook)

    @torch.no_grad()
    def step(self, closure=None):
        loss = self._optimizer.step(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                weight.clamp_(-0.3, 0.3)
        return loss


class Apex:
    """Apex's ``FP16_Optimizer``: float32 copies in the groups of the inner one, no hooks at all."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.fp16_groups = [list(group["params"]) for group in optimizer.param_groups]
        self.fp32_groups = []
        for group in optimizer.param_groups:
            copies = [nn.Parameter(p.detach().float()) for p in group["params"]]
            group["params"] = copies
            self.fp32_groups.append(copies)

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def pairs(self):
        for weights, copies in zip(self.fp16_groups, self.fp32_groups, strict=True):
            yield from zip(weights, copies, strict=True)

    def zero_grad(self, set_to_none=True):
        for weight, _ in self.pairs():
            weight.grad = None

    def step(self, closure=None):
        for weight, copy in self.pairs():
            copy.grad = weight.grad.float()
        if not all(copy.grad.isfinite().all() for _, copy in self.pairs()):
            return
        self.optimizer.step(closure)
        with torch.no_grad():
            for weight, copy in self.pairs():
                weight.copy_(copy)


class Lookahead(torch.optim.Optimizer):
    """Zhang et al. 2019, as commonly written: the weights go half of the way, after the step."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.optimizer.step(closure)
        fast = [p for group in self.param_groups for p in group["params"]]
        for weight, slow in zip(fast, self.slow, strict=True):
            weight.lerp_(slow, 0.5)
            slow.copy_(weight)
        return loss


class Several:
    """Optimizers of different kinds, for different weights, under one step."""

    def __init__(self, *optimizers):
        self.optimizers = list(optimizers)

    @property
    def param_groups(self):
        return [group for one in self.optimizers for group in one.param_groups]

    def zero_grad(self):
        for one in self.optimizers:
            one.zero_grad()

    def step(self):
        for one in self.optimizers:
            one.step()


class Sharded(torch.optim.Optimizer):
    """Torch's ``ZeroRedundancyOptimizer``: updates its shard; the others' weights arrive after."""

    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))
        params = self.param_groups[0]["params"]
        self.optim = torch.optim.SGD(params[::2], lr=lr)
        self.others = params[1::2]

    @torch.no_grad()
    def step(self, closure=None):
        self.optim.step(closure)
        for weight in self.others:
            weight -= 0.5 * self.param_groups[0]["lr"] * weight.grad


class Derived(torch.optim.AdamW):
    """A step that calls its parent's, so that torch runs the hooks of both, and then goes on."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                weight.clamp_(-0.3, 0.3)
        return loss


def adamw(params):
    return torch.optim.AdamW(params, lr=0.02)


def stochastic(params):
    return StochasticRounding(adamw(params), generator=torch.Generator().manual_seed(0))


WRAPPED = {
    "plain": adamw,
    "master weights": lambda p: MasterWeights(adamw(p)),
    "stochastic rounding": stochastic,
    "kahan": lambda p: KahanSummation(adamw(p)),
    "accelerate": lambda p: Accelerated(adamw(p)),
    "accelerate, master weights": lambda p: Accelerated(MasterWeights(adamw(p))),
    "fabric": lambda p: Fabric(adamw(p)),
    "fabric, kahan": lambda p: Fabric(KahanSummation(adamw(p))),
    "copied": lambda p: Copied(adamw(p)),
    "apex": lambda p: Apex(adamw(p)),
    "accelerate, apex": lambda p: Accelerated(Apex(adamw(p))),
    "lookahead": lambda p: Lookahead(adamw(p)),
    "accelerate, lookahead": lambda p: Accelerated(Lookahead(adamw(p))),
    "several": lambda p: Several(adamw(p[:1]), torch.optim.SGD(p[1:], lr=0.1)),
    "sharded": lambda p: Sharded(p, lr=0.1),
    "derived": lambda p: Derived(p, lr=0.02),
}
"""By name, what makes an optimizer from a list of parameters."""
