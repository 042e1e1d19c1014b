"""Claims about training in eight and four bits."""

from __future__ import annotations

import statistics

import torch

from mpbook.evidence.claims.base import (
    ByFigures,
    Claim,
    Finding,
    by_figures,
    by_share,
    exactly,
    recorded,
)
from mpbook.evidence.claims.published import MARGIN
from mpbook.evidence.claims.recorded import quality, span, speedups
from mpbook.evidence.experiments.base import FP8_NATIVE
from mpbook.evidence.experiments.low_precision_pairs import BASELINE
from mpbook.evidence.published import Figures, Measurement
from mpbook.evidence.records import Record
from mpbook.low_precision import RECIPES, quantised

HALF = 0.55
"""Of the memory in 16 bits: what would pass for half."""


def _needs_a_scale() -> Finding:
    """A gradient as small as those of a GPT, in E4M3 with and without a scale."""
    dy = 1e-5 * torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    bare, scaled = (RECIPES[f].dgrad.left for f in ("unscaled_e4m3", "mxfp8"))
    lost = {
        "no scale": (quantised(dy, bare, scale=torch.tensor(1.0)) == 0).float().mean().item(),
        "a scale for each block": (quantised(dy, scaled) == 0).float().mean().item(),
    }
    said = " and ".join(f"{share:.0%} with {name}" for name, share in lost.items())
    why = (
        f"Of gradients of about 1e-5, E4M3 makes {said} zero: it needs no loss scale when each "
        "operand has a scale of its own."
    )
    return by_share([share < 0.01 for share in lost.values()]), why


def memory_halves(figures: Figures) -> tuple[Finding, Figures]:
    """Training steps in FP8 against 16 bits, at one batch."""
    steps = figures.where(quantity="memory").that(
        lambda figure: "fp8" in figure.precision_b.lower() and "16" in str(figure.precision_a)
    )
    everything = steps.that(lambda figure: "MS-AMP" in figure.precision_b)
    products = steps.that(lambda figure: "MS-AMP" not in figure.precision_b)
    if not len(products) or not len(everything):
        raise LookupError("no published step in FP8")
    why = (
        f"FP8 products alone take {min(products.ratios):.0%} to {max(products.ratios):.0%} of the "
        f"memory in 16 bits. With weights, gradients and optimizer state in 8 bits too it is "
        f"{min(everything.ratios):.0%} to {max(everything.ratios):.0%}."
    )
    return (by_share([ratio <= HALF for ratio in steps.ratios]), why), steps


def speed_doubles(figures: Figures) -> tuple[Finding, Figures]:
    """Whole trainings of Transformers in FP8 or FP4 against 16 bits."""
    whole = figures.where(claim="fp8-speed", kind_of_model="Transformers")
    if not len(whole):
        raise LookupError("no published training in FP8")
    why = (
        f"Of {len(whole)} published trainings the middle one is "
        f"{statistics.median(whole.ratios):.2f} times "
        f"as fast as in 16 bits, and the best {max(whole.ratios):.2f}."
    )
    return (by_share([ratio >= 2 for ratio in whole.ratios]), why), whole


def _doubles_tokens(record: Record) -> Finding:
    ratios = speedups(record, of=(FP8_NATIVE.name,), over=BASELINE)
    why = f"GPT-2 trains {span(ratios, '.2f')} times as fast as in {BASELINE}."
    return by_share([ratio >= 2 for ratio in ratios]), why


def _mxfp8_as_good(record: Record) -> Finding:
    return quality(record, of="mxfp8-mixed", over=BASELINE)


def _nvfp4_as_good(record: Record) -> Finding:
    return quality(record, of="nvfp4-mixed", over="float8_tensorwise-mixed")


def as_good_as(of: str, baseline: str) -> ByFigures:
    """Decides by published losses and scores: within `MARGIN` of the baseline's, or not."""

    def find_out(figures: Figures) -> tuple[Finding, Figures]:
        pairs = figures.where(quantity="quality", baseline=baseline).compared.that(
            lambda figure: figure.precision_b.startswith(of)
        )
        if not len(pairs):
            raise LookupError(f"no published pair of {of} and {baseline}")
        near = [abs(figure.improvement or 0.0) <= MARGIN for figure in pairs]
        why = (
            f"{sum(near)} of {len(near)} published pairs, single runs all, lie within "
            f"{MARGIN:.1%}: {'; '.join(map(_how_good, pairs))}."
        )
        return (by_share(near), why), pairs

    return find_out


def _how_good(figure: Measurement) -> str:
    """As "training loss 2.01 against 2, 0.50% worse (Llama)"."""
    by = figure.improvement or 0.0
    return (
        f"{figure.unit.partition(' (')[0]} {figure.value_b:g} against {figure.value_a:g}, "
        f"{abs(by):.2%} {'better' if by > 0 else 'worse'} ({figure.model.partition(',')[0]})"
    )


_NVFP4_PAPER = "[NVIDIA, 2025](https://arxiv.org/abs/2509.25149)"
_PAGE = "formats_that_need_less/fp8_and_below"

CLAIMS = (
    Claim(
        "fp8-needs-no-loss-scaling",
        "FP8 needs no loss scaling.",
        "often said",
        exactly(_needs_a_scale),
        f"{_PAGE}#fp8-why",
    ),
    Claim(
        "fp8-halves-memory",
        "FP8 halves the memory of training.",
        "often said",
        by_figures(memory_halves),
        f"{_PAGE}#fp8-memory",
    ),
    Claim(
        "fp8-doubles-speed",
        "FP8 doubles the speed of training.",
        "data sheets, of the peak",
        recorded("gpt2_throughput", _doubles_tokens, otherwise=speed_doubles),
        f"{_PAGE}#fp8-speed",
    ),
    Claim(
        "mxfp8-is-as-good-as-bf16",
        "Training in MXFP8 is as good as in bfloat16, within 0.3%.",
        "[Mishra et al. 2025](https://arxiv.org/abs/2506.08027): sessions that match",
        recorded("low_precision_pairs", _mxfp8_as_good, otherwise=as_good_as("MXFP8", "16 bits")),
        f"{_PAGE}#fp8-quality",
    ),
    Claim(
        "nvfp4-trains-as-well-as-fp8",
        "NVFP4 trains as well as FP8, within 0.3%.",
        f"{_NVFP4_PAPER}, one run each",
        recorded("low_precision_pairs", _nvfp4_as_good, otherwise=as_good_as("NVFP4", "8 bits")),
        f"{_PAGE}#fp8-quality",
    ),
)
