"""Choices that a format flips: which experts, which token, which maximum.

An index has no gradient and no range.  Two scores that float32 tells apart may be equal in 16 bits,
or change places, and then another expert is asked or another word is written, without an infinity
anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mpbook.diagnosis.places import Place
from mpbook.diagnosis.stepping import Run


@dataclass(frozen=True)
class Flipped:
    """One operator that chooses indices, and the share of its rows that differ from float32's."""

    operator: str
    place: Place
    share: float


def flipped(run: Run, reference: Run) -> list[Flipped]:
    """Operators of the first step whose indices differ; in the order of execution.

    Calls of one operator on one line, as in a loop over time, are one: the share is of all rows.
    """
    known = {choice.key: choice.indices for choice in reference.recorder.choices}
    found: dict[tuple[str, Place], list[tuple[float, int]]] = {}
    for choice in run.recorder.choices:
        expected = known.get(choice.key)
        if expected is None or expected.shape != choice.indices.shape or not expected.numel():
            continue
        share = _share(choice.indices, expected, ordered="topk" not in choice.key.operator)
        name = choice.key.operator.partition(" ")[0]
        found.setdefault((name, choice.key.place), []).append((share, expected.numel()))
    pooled = ((n, p, _mean(shares)) for (n, p), shares in found.items())
    return [Flipped(name, place, share) for name, place, share in pooled if share]


def _mean(shares: list[tuple[float, int]]) -> float:
    """Of shares, each with how many indices it is of."""
    return sum(share * count for share, count in shares) / sum(count for _, count in shares)


def _share(got: Tensor, expected: Tensor, *, ordered: bool) -> float:
    """Of the rows: how many chose something else; the order within a top-k does not count."""
    if ordered or not got.dim():
        return float((got != expected).float().mean())
    differs = (got.sort(-1).values != expected.sort(-1).values).any(-1)
    return float(differs.float().mean())
