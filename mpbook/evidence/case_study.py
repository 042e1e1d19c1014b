"""A claim about a training run, taken apart: memory as a line, speed as two terms, and the records.

"Mixed precision takes so much less memory" cannot be true or false as it stands.  What a step holds
is a straight line in its tokens: a part for each parameter, whatever the batch, and a part for each
token.  The saving is the ratio of two such lines, and goes from one end to the other as the batch
grows.  `MemoryLine` says where it crosses a given saving, or that it never does.

"So much faster" needs a baseline and a machine.  `predicted_tokens_per_second` adds up two times,
that of the products and that of the memory traffic, only one of which a narrower format shortens
by much.

The rest reads the records of GPT-2 (`mpbook.evidence.experiments`): what ran out of memory stays a
row, what spread widely is marked, and where there is no record the predictions stand alone, beside
what others have published.  Taught in "GPT-2: a
famous claim on trial".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpbook.cost.measure import Spread
from mpbook.data import standard_library
from mpbook.device import sized
from mpbook.evidence.ladders import throughputs
from mpbook.evidence.published import Figures, published
from mpbook.evidence.records import Record
from mpbook.models import GPT, GPTConfig
from mpbook.notebook import Table
from mpbook.training import Comparison, compare
from mpbook.training.paired import PairedDifference

EXPERIMENTS = ("gpt2_memory", "gpt2_throughput", "optimisation_ladder", "bf16_pairs")
"""The experiments that the chapter reads, by name; the ladder by `mpbook.evidence.ladders`."""

# --- Memory: a line ----------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryLine:
    """Bytes that a training step holds: ``fixed``, and ``per_token`` for each of its tokens.

    Through what is counted this is the line of `mpbook.cost.memory_plan`, whose ``memory.total`` is
    linear in the batch.  That total adds what a step holds at different moments: it is an upper
    bound, but for the temporaries, of the peak that decides whether a step fits; the larger of
    gradients and saved tensors, with what is kept, is the lower one.
    """

    fixed: float
    per_token: float

    @classmethod
    def through(cls, first: tuple[int, float], second: tuple[int, float]) -> MemoryLine:
        """The line through two measurements, each of tokens and bytes.

        Raises:
            ValueError: both of the same number of tokens.

        >>> MemoryLine.through((10, 300), (30, 500))
        MemoryLine(fixed=200.0, per_token=10.0)
        """
        (x, low), (y, high) = first, second
        if x == y:
            raise ValueError(f"second: {y} tokens like the first; a line needs two points")
        per_token = (high - low) / (y - x)
        return cls(fixed=low - per_token * x, per_token=per_token)

    def at(self, tokens: float) -> float:
        """Bytes of a step of so many tokens."""
        return self.fixed + self.per_token * tokens

    def saving(self, *, to: MemoryLine, tokens: float) -> float:
        """How much less than the other line this one takes, as a fraction of the other."""
        return 1 - self.at(tokens) / to.at(tokens)

    def saving_limit(self, *, to: MemoryLine) -> float:
        """The saving that an ever larger batch approaches."""
        return 1 - self.per_token / to.per_token

    def tokens_for(self, saving: float, *, to: MemoryLine) -> float | None:
        """The fewest tokens from which on the saving is reached; None if no batch reaches it.

        Raises:
            ValueError: a saving of 1 or more, or a line that saves less the larger the batch.
        """
        if not saving < 1:
            raise ValueError(f"saving={saving}: expected less than 1, 0.4 for 40%")
        missing = self.fixed - (1 - saving) * to.fixed
        gained = (1 - saving) * to.per_token - self.per_token
        if self.saving_limit(to=to) < self.saving(to=to, tokens=0):
            raise ValueError("to: the saving falls as the batch grows, so it has no first batch")
        if missing <= 0:
            return 0.0
        return missing / gained if gained > 0 else None

    def tokens_until(self, saving: float, *, to: MemoryLine) -> float | None:
        """The most tokens up to which a saving lasts that is there from the start.

        Returns:
            None if it is not there from the start, infinity if it never ends.

        Raises:
            ValueError: a saving of 1 or more.

        >>> MemoryLine(50, 1).tokens_until(0.4, to=MemoryLine(100, 1))
        25.0
        """
        if not saving < 1:
            raise ValueError(f"saving={saving}: expected less than 1, 0.4 for 40%")
        spare = (1 - saving) * to.fixed - self.fixed
        lost = self.per_token - (1 - saving) * to.per_token
        if spare < 0:
            return None
        return spare / lost if lost > 0 else math.inf


# --- Speed: two terms --------------------------------------------------------------------------


def predicted_tokens_per_second(
    flops: float,
    traffic: float,
    *,
    peak: float,
    bandwidth: float,
    reached: float = 0.8,
) -> float:
    """Tokens a second if products and memory traffic take turns.

    That is the longest that the two can take, their sum; if they overlapped wholly, a step would
    take the larger of the two.  Between them lies `mpbook.cost.roofline.gpt_step`, in which each
    part of a step overlaps with itself alone: what it adds up is the larger of each part's two.

    Args:
        flops: operations for each token.
        traffic: bytes that are read and written for each token, outside the products.
        peak: operations a second that the maker states for products in this format, dense.
        bandwidth: bytes a second of the memory.
        reached: the share of the peak that products reach.

    Raises:
        ValueError: a share that is not above 0 and at most 1.

    >>> predicted_tokens_per_second(8.0, 3.0, peak=10.0, bandwidth=1.0)
    0.25
    """
    if not 0 < reached <= 1:
        raise ValueError(f"reached={reached}: expected a share above 0 and at most 1")
    return 1 / (flops / (reached * peak) + traffic / bandwidth)


# --- What was recorded -------------------------------------------------------------------------


def speedup(record: Record | None, precision: str, *, to: str, **same: Any) -> float | None:
    """How many times the tokens a second of another precision, in cases that share the rest.

    Args:
        record: of ``gpt2_throughput``, or None.
        precision: whose rate is divided.
        to: whose rate divides it.
        **same: mode and vocabulary of both cases.

    Returns:
        The ratio of the medians; None without a record, or if either case has no results.
    """
    if record is None:
        return None
    try:
        fast, slow = (record.results(precision=p, **same)["seconds"] for p in (precision, to))
    except LookupError:
        return None
    return Spread(tuple(slow)).median / Spread(tuple(fast)).median


def published_speedup(*, to: str) -> Figures:
    """Published pairs of a GPT-2 of about 124M parameters: mixed precision over another, eager.

    Args:
        to: ``"32-true"`` or ``"tf32"``; figures whose baseline is not known count for neither.
    """
    pairs = published(claim="gpt2-2x-tokens", quantity="speed", precision="mixed")
    base = {"32-true": "float32", "tf32": "TF32"}[to]
    eager = pairs.that(lambda figure: not figure.compiled)
    return eager.where(model=r"small|124M", baseline=base)


def savings(record: Record, precision: str, *, to: str = "32-true") -> dict[int, float | None]:
    """By batch, how much less memory a precision takes; None where either has no result.

    It is the device's own count at its peak where there is one, else the sum of the categories.
    """
    held = {(row["case"]["precision"], row["case"]["batch"]): _held(row) for row in record.cases}
    batches = sorted({batch for name, batch in held if name == precision})
    return {b: _saving(held[precision, b], held.get((to, b))) for b in batches}


def _held(row: Mapping[str, Any]) -> int | None:
    if row["status"] != "measured":
        return None
    results = row["results"]
    return sum(results["memory"].values()) if results["peak"] is None else int(results["peak"])


def _saving(bytes_here: int | None, bytes_there: int | None) -> float | None:
    return None if bytes_here is None or bytes_there is None else 1 - bytes_here / bytes_there


def short_runs(precisions: Sequence[str], *, device: torch.device, seeds: int = 8) -> Comparison:
    """Fifty steps of a small GPT in each precision, from the same weights on the same batches.

    The runs by which the chapter and, until there is a record, the ledger of claims judge quality.

    Args:
        precisions: the first is what the others are compared with.
        device: where; a GPU gets a wider model and more sequences.
        seeds: how many runs in each precision.
    """
    width, batch_size = sized(cpu=(64, 8), gpu=(128, 16), device=device)
    return compare(
        lambda seed: GPT(GPTConfig(width=width)),
        standard_library(megabytes=2),
        precisions,
        steps=50,
        seeds=seeds,
        batch_size=batch_size,
        learning_rate=3e-4,  # at which 16-bit weights lose several times the margin
        warmup_steps=10,
        decay="cosine",
        device=device,
    )


def quality(record: Record | None, precision: str, *, margin: float, to: str = "32-true") -> str:
    """What the pairs of a record say of a precision's validation loss, as one sentence.

    Args:
        record: of ``bf16_pairs``, or None.
        precision: what is compared.
        margin: the largest relative difference that does not matter: 0.003 for 0.3%.
        to: what it is compared with.
    """
    if record is None:
        return "no verdict: there is no record of it"
    here, there = (_by_seed(record, name) for name in (precision, to))
    pairs = [(here[seed], there.get(seed)) for seed in here]
    whole = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(whole) < len(pairs):
        return f"no verdict: {len(pairs) - len(whole)} of {len(pairs)} pairs are incomplete"
    if len(whole) < 2:
        return f"no verdict: of {len(whole)} pairs, which give no interval"
    values, base = zip(*whole, strict=True)
    found = PairedDifference(name=precision, baseline=to, values=values, baseline_values=base)
    return found.verdict(margin=margin)


def _by_seed(record: Record, precision: str) -> dict[int, float | None]:
    """The validation loss of each seed; None where it diverged or was not measured."""
    return {
        row["case"]["seed"]: row["results"].get("validation_loss")
        for row in record.cases
        if row["case"]["precision"] == precision
    }


# --- Tables -----------------------------------------------------------------------


def throughput_table(record: Record | None, predicted: Mapping[str, tuple[float, float]]) -> Table:
    """Tokens a second of each case, beside what was predicted for its precision.

    Args:
        record: of ``gpt2_throughput``; None leaves the predictions alone.
        predicted: tokens a second by precision, lowest and highest.
    """
    ranges = {name: f"{low:,.0f} to {high:,.0f}" for name, (low, high) in predicted.items()}
    if record is None:
        return Table(["precision", "predicted tokens/s"], list(map(list, ranges.items())))
    header = ["precision", "mode", "vocabulary", "predicted", "tokens/s", "MFU", "peak GiB", ""]
    rows = [
        [
            found.case["precision"],
            found.case["mode"],
            found.case["vocabulary"],
            ranges.get(found.case["precision"], ""),
            *found.cells,
        ]
        for found in throughputs(record)
    ]
    return Table(header, rows, caption=record.caption)


def memory_table(
    record: Record | None, predicted: Mapping[int, float], *, to: str = "32-true"
) -> Table:
    """By batch, how much less memory each precision takes than ``to``.

    Args:
        record: of ``gpt2_memory``; None leaves the predictions alone.
        predicted: savings of bf16-mixed by batch, as fractions.
        to: the precision that the others are compared with.
    """
    guess = "bf16-mixed, predicted"
    if record is None:
        rows = [[batch, _percent(saving)] for batch, saving in predicted.items()]
        return Table(["batch", guess], rows, caption=f"Less than {to}")
    names = dict.fromkeys(row["case"]["precision"] for row in record.cases)
    by_name = {name: savings(record, name, to=to) for name in names if name != to}
    batches = sorted({batch for found in by_name.values() for batch in found})
    rows = [
        [
            batch,
            _percent(predicted[batch]) if batch in predicted else "",
            *(_percent(found.get(batch)) for found in by_name.values()),
        ]
        for batch in batches
    ]
    return Table(["batch", guess, *by_name], rows, caption=f"Less than {to}; {record.caption}")


def _percent(saving: float | None) -> str:
    return "no result" if saving is None else f"{saving:.1%}"
