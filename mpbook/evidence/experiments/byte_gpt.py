"""A GPT on the bytes of Python's own source: what the experiments about losses train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mpbook.data import ByteCorpus, standard_library
from mpbook.device import sized
from mpbook.evidence.experiments.base import Case, Results
from mpbook.models import GPT, GPTConfig
from mpbook.precision import Precision
from mpbook.training import Run, train
from mpbook.training.nudge import nudged


@dataclass(frozen=True, kw_only=True)
class ByteGPT:
    """The model, its data, and how long it trains."""

    layers: int
    width: int
    context: int
    batch_size: int
    megabytes: float | None
    steps: int

    def model(self, seed: int) -> GPT:
        """The model with the initial weights of a seed."""
        torch.manual_seed(seed)
        return GPT(GPTConfig(context=self.context, layers=self.layers, width=self.width))

    def data(self) -> ByteCorpus:
        """Python's standard library, in sequences of the model's context."""
        return standard_library(sequence_length=self.context, megabytes=self.megabytes)

    def train(self, model: nn.Module, precision: str | Precision, **settings: Any) -> Run:
        """Train a copy of the model."""
        return train(
            model,
            self.data(),
            precision=precision,
            steps=self.steps,
            batch_size=self.batch_size,
            progress=False,
            **settings,
        )


NUDGE = "1-ulp nudge"
"""The control of a comparison in pairs: the baseline, from a start one digit away."""


@dataclass(frozen=True, kw_only=True)
class Pairs(ByteGPT):
    """Runs in several precisions, from the same weights and batches seed by seed.

    The first of ``precisions`` is the baseline, `NUDGE` among them the control.
    """

    seeds: int
    precisions: tuple[str, ...]

    def cases(self) -> list[Case]:
        """Each precision of a seed, one seed after the other."""
        return [{"precision": p, "seed": s} for s in range(self.seeds) for p in self.precisions]

    def measure(self, case: Case, device: torch.device) -> Results:
        """The losses and seconds of one run."""
        model: nn.Module = self.model(case["seed"])
        precision = case["precision"]
        if precision == NUDGE:
            model, precision = nudged(model, dtype=torch.float32), self.precisions[0]
        run = self.train(
            model,
            precision,
            learning_rate=1e-3,
            warmup_steps=min(20, self.steps),
            decay="cosine",
            seed=case["seed"],
            device=device,
        )
        return loss_results(run) | {"seconds": run.seconds}


def sizes(device: torch.device) -> dict[str, Any]:
    """Those of a `ByteGPT` on a GPU, or small ones for a CPU; all but the steps."""
    if sized(cpu=False, gpu=True, device=device):
        return dict(layers=4, width=256, context=256, batch_size=32, megabytes=None)
    return dict(layers=1, width=32, context=32, batch_size=8, megabytes=0.5)


def loss_results(run: Run) -> Results:
    """The losses of a run, as a record keeps them: NaN and infinity become None."""
    return {
        "losses": [_finite(loss) for loss in run.losses],
        "validation_loss": _finite(run.validation_loss),
    }


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None
