"""Claims about the speed and memory of a GPU, and about quality: records decide them."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from mpbook.device_facts import GPUS, find_gpu
from mpbook.evidence import case_study
from mpbook.evidence.claims import published
from mpbook.evidence.claims.base import (
    MICIKEVICIUS,
    NOT_RECORDED,
    Claim,
    Evidence,
    Finding,
    Verdict,
    by_share,
    live,
    recorded,
)
from mpbook.evidence.records import Record
from mpbook.training.paired import PairedDifference

MIXED = ("16-mixed", "bf16-mixed")

# --- Speed ---------------------------------------------------------------------------------------


def _rates(record: Record) -> dict[tuple[str, str, int], float]:
    """Tokens a second, by precision, mode and vocabulary."""
    return {
        (case["precision"], case["mode"], case["vocabulary"]): (
            results["tokens"] / statistics.median(results["seconds"])
        )
        for case, results in record.measured()
    }


def speedups(record: Record, *, of: tuple[str, ...], over: str) -> list[float]:
    """How many times as many tokens a second, wherever both were measured the same way."""
    rates = _rates(record)
    return [
        rate / rates[over, mode, vocabulary]
        for (precision, mode, vocabulary), rate in rates.items()
        if precision in of and (over, mode, vocabulary) in rates
    ]


def span(ratios: list[float], format: str = ".1f") -> str:
    """The smallest and the largest of some ratios, in words.

    Raises:
        LookupError: there is none.
    """
    if not ratios:
        raise LookupError("no two cases to compare")
    return f"{min(ratios):{format}} to {max(ratios):{format}}"


def _two_to_four_times(record: Record) -> Finding:
    over_ieee = speedups(record, of=MIXED, over="32-true")
    over_tf32 = speedups(record, of=MIXED, over="tf32")
    why = (
        f"GPT-2 trains {span(over_ieee)} times as fast as in float32, and {span(over_tf32)} "
        "times as fast as in TF32."
    )
    return by_share([2 <= ratio <= 4 for ratio in (*over_ieee, *over_tf32)]), why


def _doubles_tokens(record: Record) -> Finding:
    ratios = speedups(record, of=("bf16-mixed",), over="32-true")
    why = f"bf16-mixed makes {span(ratios)} times the tokens a second of float32."
    return by_share([ratio >= 2 for ratio in ratios]), why


def _h100(evidence: Evidence) -> Verdict:
    h100, pcie = GPUS["H100 SXM"], GPUS["H100 PCIe"].dense_peaks["bfloat16"]
    claimed, dense = 1979e12, h100.dense_peaks["bfloat16"]
    sheet = (
        f"the data sheet's 1979 is an SXM board's, with 2:4 sparsity; dense it is "
        f"{dense / 1e12:g} (989.4 from cores and clock; on PCIe {pcie / 1e12:g})"
    )
    record = evidence.find("matmul_ladder")
    if record is None or find_gpu(record.provenance.device) is not h100:
        why = f"{sheet[0].upper()}{sheet[1:]}; training is dense."
        return Verdict(by_share([dense >= claimed]), why, "NVIDIA's data sheet")
    rates = [
        results["flops"] / statistics.median(results["seconds"])
        for case, results in record.measured()
        if case["format"] == "bfloat16"
    ]
    best = max(rates, default=0.0)
    why = f"The best product reached {best / 1e12:.0f}; {sheet}."
    return Verdict(by_share([best >= claimed]), why, record.caption)


# --- Memory --------------------------------------------------------------------------------------


def _peaks(record: Record) -> dict[tuple[str, int], int]:
    """The allocator's peak in bytes, by precision and batch, where there is one."""
    return {
        (case["precision"], case["batch"]): results["peak"]
        for case, results in record.measured()
        if results["peak"] is not None
    }


def _takes_at_most(share: float) -> Callable[[Record], Finding]:
    """Decides whether bf16-mixed takes at most this share of float32's memory."""

    def find_out(record: Record) -> Finding:
        peaks = _peaks(record)
        ratios = [
            peak / peaks["32-true", batch]
            for (precision, batch), peak in peaks.items()
            if precision == "bf16-mixed" and ("32-true", batch) in peaks
        ]
        why = f"At the same batch bf16-mixed takes {span(ratios, '.0%')} of float32's memory."
        return by_share([ratio <= share for ratio in ratios]), why

    return find_out


def twice_the_batch(record: Record) -> Finding:
    """Whether twice the batch in bf16-mixed fits into the memory that float32 takes."""
    peaks = _peaks(record)
    tried = {
        (row["case"]["precision"], row["case"]["batch"])
        for row in record.cases
        if row["status"] in ("measured", "out of memory")
    }
    # A doubled batch that ran out of memory was tried, and did not fit.
    fits = {
        batch: peaks.get(("bf16-mixed", 2 * batch), float("inf")) <= peak
        for (precision, batch), peak in peaks.items()
        if precision == "32-true" and ("bf16-mixed", 2 * batch) in tried
    }
    if not fits:
        raise LookupError("no batch in float32 with twice as many in bf16-mixed")
    fitting = [str(batch) for batch, does in fits.items() if does]
    why = (
        f"Twice the batch in bf16-mixed fits into float32's memory from batch "
        f"{', '.join(fitting) or 'none'} of {', '.join(map(str, fits))}."
    )
    return by_share(list(fits.values())), why


# --- Quality -------------------------------------------------------------------------------------

MARGIN = 0.003
"""The largest relative difference of loss that does not matter."""


def quality(record: Record, *, of: str, over: str) -> Finding:
    """What pairs of runs from the same seeds say of a precision's loss, over that of another.

    Raises:
        LookupError: fewer than two pairs.
    """
    losses: dict[str, dict[int, float | None]] = {over: {}, of: {}}
    for case, results in record.measured():
        if case["precision"] in losses:
            losses[case["precision"]][case["seed"]] = results["validation_loss"]
    seeds = sorted(set(losses[over]) & set(losses[of]))
    pairs = [(losses[of][seed], losses[over][seed]) for seed in seeds]
    if len(pairs) < 2:
        raise LookupError(f"no two seeds of {of} and {over}, {len(pairs)} pairs of seeds")
    if any(ours is None and theirs is not None for ours, theirs in pairs):
        return "false", f"A run in {of} diverged where {over} did not."
    finite = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(finite) < 2:
        raise LookupError("runs that did not diverge")
    values, base = zip(*finite, strict=True)
    found = PairedDifference(name=of, baseline=over, values=values, baseline_values=base)
    return judge_quality(found)


def _quality(record: Record) -> Finding:
    return quality(record, of="bf16-mixed", over="32-true")


def _kept_quality(evidence: Evidence) -> Verdict:
    """By the record's long runs; without it by what is published, beside short runs made here."""
    verdict = recorded("bf16_pairs", _quality, otherwise=published.quality_is_kept)(evidence)
    if evidence.find("bf16_pairs") is not None:
        return verdict
    here = live(_short_quality)(evidence)
    if verdict.kind == NOT_RECORDED:
        return here
    return Verdict(
        verdict.kind, f"{verdict.why} {here.why}", f"{verdict.evidence}; {here.evidence}"
    )


def _short_quality(device: torch.device) -> Finding:
    runs = case_study.short_runs(["32-true", "bf16-mixed"], device=device)
    kind, why = judge_quality(runs.difference("bf16-mixed"))
    # What fifty steps in bfloat16 show is one case, not the sentence.
    only = "A small GPT, 50 steps, bfloat16 (float16 and longer runs take a record of bf16_pairs)."
    return ("holds when ..." if kind == "holds" else kind), f"{only} {why}"


def judge_quality(pairs: PairedDifference) -> Finding:
    """What an interval over pairs of runs says of a `MARGIN` of 0.3%."""
    low, high = pairs.relative_interval
    why = (
        f"Over {pairs.seeds} pairs of seeds the loss differs by {low:+.2%} to {high:+.2%} "
        f"({pairs.confidence:.0%} confidence); "
        f"so many show a difference of {pairs.detectable():.2%} four times in five."
    )
    if pairs.within(MARGIN):
        return "holds", why
    if low > MARGIN or high < -MARGIN:
        return "false", why
    return NOT_RECORDED, f"{why} That does not settle {MARGIN:.1%}."


_RECIPE = "https://pytorch.org/tutorials/recipes/recipes/amp_recipe.html"

CLAIMS = (
    Claim(
        "h100-does-1979-tflops",
        "An H100 does 1979 TFLOP/s in bfloat16.",
        "[a data sheet](https://archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html), "
        "with a footnote",
        _h100,
        "practice/speed#sp-which-peak",
    ),
    Claim(
        "two-to-four-times-faster",
        "Mixed precision trains 2 to 4 times faster.",
        f"often said; [PyTorch's AMP recipe]({_RECIPE}) says 2-3",
        recorded("gpt2_throughput", _two_to_four_times, otherwise=published.two_to_four_times),
        "practice/speed#sp-than-what",
    ),
    Claim(
        "gpt2-twice-the-tokens",
        "Mixed precision doubles the tokens per second of GPT-2.",
        "often said",
        recorded("gpt2_throughput", _doubles_tokens, otherwise=published.twice_the_tokens),
        "practice/gpt2#gpt2-tokens",
    ),
    Claim(
        "memory-halves",
        "Mixed precision halves the memory of training.",
        f"{MICIKEVICIUS}: nearly",
        recorded("gpt2_memory", _takes_at_most(0.55), otherwise=published.memory_halves),
        "practice/memory#memory-half-the-bits",
    ),
    Claim(
        "gpt2-40-percent-less-memory",
        "Mixed precision trains GPT-2 in 40% less memory.",
        "often said",
        recorded("gpt2_memory", _takes_at_most(0.6), otherwise=published.forty_percent_less),
        "practice/gpt2#gpt2-peak",
    ),
    Claim(
        "twice-the-batch",
        "16 bits let you double the batch.",
        "[fastai's guide](https://docs.fast.ai/callback.fp16.html): in theory",
        recorded("gpt2_memory", twice_the_batch, otherwise=published.twice_the_batch),
        "practice/memory#memory-twice",
    ),
    Claim(
        "quality-is-kept",
        "The loss of mixed precision stays within 0.3% of float32's.",
        "often said, as 0.1 to 0.3%",
        _kept_quality,
        "practice/gpt2#gpt2-quality",
    ),
)
