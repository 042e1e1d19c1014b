"""Why 16 bits are faster, when they are: the roofline.

A device does two things at once, and each has a top speed: it computes, so many operations a second
in each format, and it moves bytes between memory and the units that compute.  A piece of work needs
some of both.  Their ratio, operations for each byte, is its *arithmetic intensity*, and it decides
which of the two speeds holds the work back:

    attainable rate = min(peak rate, intensity x bandwidth)

The two meet at the *ridge*, peak / bandwidth.  Left of it work is memory-bound: narrower numbers
help because there are fewer bytes, by a factor of two at best from float32 to 16 bits.  Right of it
work is compute-bound, and narrower numbers help because tensor cores multiply them faster.

It is a model.  Every operand is counted as read from memory once and every result as written once,
and a card's peak is what its data sheet states.  A real kernel moves more and computes at less than
its peak, so that a measured point mostly lies below; where a cache still holds the operands, or a
kernel leaves out what a causal mask hides, it can lie above.
Source: Williams, Waterman and Patterson 2009, "Roofline".

Taught in the chapter "Speed".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from mpbook import device as devices
from mpbook.cost.measure import time_calls
from mpbook.device_facts import GPUS, GpuFacts
from mpbook.formats import as_format
from mpbook.models import GPTConfig
from mpbook.synonyms import did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Bound = Literal["memory", "compute"]
Kernel = Literal["fused", "unfused"]


# --- What work takes --------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Floating-point operations, and the bytes that must at least be moved for them.

    ``product`` says whether the operations are those of matrix products, which tensor cores do.
    """

    name: str
    flops: int
    bytes: int
    product: bool = True

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return self.flops / self.bytes


def bytes_each(format: str) -> float:
    """Bytes that a number of a format takes in memory; tfloat32 is stored as float32.

    Raises:
        ValueError: a format that is not known.

    >>> bytes_each("bfloat16"), bytes_each("tfloat32"), bytes_each("float4_e2m1fn")
    (2.0, 4.0, 0.5)
    """
    return 4.0 if format == "tfloat32" else as_format(format).bits / 8


def matmul(m: int, k: int, n: int, format: str) -> Work:
    """The product of an (m, k) with a (k, n) matrix: a multiplication and an addition count as two.

    Raises:
        ValueError: a size below 1, or an unknown format.

    >>> matmul(1024, 1024, 1024, "bfloat16").intensity  # n / 3 for squares in 16 bits
    341.3333333333333
    """
    _check(m=m, k=k, n=n)
    numbers = m * k + k * n + m * n
    return Work(f"{m} x {k} x {n}", 2 * m * k * n, round(numbers * bytes_each(format)))


def elementwise(
    elements: int, format: str, *, reads: int = 1, writes: int = 1, operations: int = 1
) -> Work:
    """Work on each element of a tensor by itself.

    Args:
        elements: of each tensor.
        format: of all of them.
        reads: tensors that are read.
        writes: tensors that are written.
        operations: on each element.

    Raises:
        ValueError: a count below 1, or an unknown format.
    """
    _check(elements=elements, reads=reads, writes=writes, operations=operations)
    moved = round(elements * (reads + writes) * bytes_each(format))
    return Work("elementwise", operations * elements, moved, product=False)


def attention(
    batch: int, heads: int, time: int, head_width: int, format: str, *, kernel: Kernel = "fused"
) -> Work:
    """Attention forward, as if it were not causal: two products of (time, time) scores.

    A fused kernel (FlashAttention) moves queries, keys, values and the result.  An unfused one also
    writes the scores and reads them back for the softmax, and the probabilities likewise.

    Raises:
        ValueError: a size below 1, an unknown format or kernel.
    """
    _check(batch=batch, heads=heads, time=time, head_width=head_width)
    if kernel not in ("fused", "unfused"):
        raise ValueError(f'kernel={kernel!r}: expected "fused" or "unfused"')
    scores = batch * heads * time * time
    numbers = 4 * batch * heads * time * head_width + (4 * scores if kernel == "unfused" else 0)
    return Work("attention", 4 * scores * head_width, round(numbers * bytes_each(format)))


def gpt_step(config: GPTConfig, *, batch: int, format: str) -> tuple[Work, ...]:
    """The parts of one eager training step of a GPT with AdamW: forward, backward and update.

    Products and GELU are in ``format``.  With a 16-bit one the weights stay float32, are cast once
    a step, and residuals, norms and the loss are float32, as autocast has it.  A layer has one
    product forward and two backward, of the same three sizes.  Biases, embeddings and clipping are
    left out.

    Returns:
        Linear layers, logits, attention, elementwise work, the loss, casts (in 16 bits only), and
        the optimizer.

    Raises:
        ValueError: a batch below 1, or a format that is not float32, tfloat32, float16 or bfloat16.
    """
    _check(batch=batch)
    if format not in (known := ("float32", "tfloat32", "float16", "bfloat16")):
        hint = did_you_mean(format, known)
        raise ValueError(f'format="{format}": expected one of {", ".join(known)}{hint}')
    tokens, width, layers = batch * config.context, config.width, config.layers
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    linear = _total("linear layers", (matmul(tokens, a, b, format) for a, b in shapes), 3 * layers)
    logits = _total("logits", [matmul(tokens, width, config.vocabulary, format)], 3)
    head_width = width // config.heads
    mixing = attention(batch, config.heads, config.context, head_width, format)
    weights = layers * 12 * width * width + config.vocabulary * width
    parts = [linear, logits, _total("attention", [mixing], 3 * layers)]
    parts.append(_moved("elementwise", layers * tokens * width * _bytes_in_a_block(format)))
    parts.append(_moved("loss", 4 * 4 * tokens * config.vocabulary))
    if bytes_each(format) == 2:
        activations = tokens * (6 * layers * width + 2 * width + 2 * config.vocabulary)
        parts.append(_moved("casts", (4 + 2) * (2 * weights + activations)))
    # AdamW reads weight, gradient and both moments, and writes all but the gradient.
    parts.append(_moved("optimizer", 7 * 4 * (weights + config.context * width)))
    return tuple(parts)


def _bytes_in_a_block(format: str) -> int:
    """Bytes that what is no product moves in a block, forward and backward, for a number a token.

    A norm reads and writes, and backward reads the gradient and the saved input and writes a
    gradient; so does GELU, on four widths.  An addition to the residual reads it and a branch and
    writes; backward adds the two gradients that meet there.
    """
    narrow = round(bytes_each(format))
    norm, gelu, addition = 5 * 4, 4 * 5 * narrow, 4 + narrow + 4 + 3 * 4
    return 2 * norm + gelu + 2 * addition


def _total(name: str, works: Iterable[Work], times: int) -> Work:
    listed = list(works)
    flops, moved = sum(w.flops for w in listed), sum(w.bytes for w in listed)
    return Work(name, times * flops, times * moved)


def _moved(name: str, moved: int) -> Work:
    """Work whose operations do not count beside its bytes."""
    return Work(name, 0, moved, product=False)


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count}: expected at least 1")


# --- What a device can do -----------------------------------------------------------------------


def ridge_point(peak: float, bandwidth: float) -> float:
    """The intensity from which on work is compute-bound, in operations for each byte.

    Raises:
        ValueError: anything that is not positive.
    """
    if not (peak > 0 and bandwidth > 0):
        raise ValueError(f"peak={peak}, bandwidth={bandwidth}: expected positive ones")
    return peak / bandwidth


def attainable(intensity: float, *, peak: float, bandwidth: float) -> float:
    """The rate that the roof allows, in operations a second.

    Args:
        intensity: operations for each byte.
        peak: operations a second.
        bandwidth: bytes a second.

    Raises:
        ValueError: anything that is not positive, or a negative intensity.

    >>> attainable(10.0, peak=1000.0, bandwidth=50.0)
    500.0
    """
    if intensity < 0:
        raise ValueError(f"intensity={intensity}: expected 0 or more")
    ridge_point(peak, bandwidth)
    return min(peak, intensity * bandwidth)


@dataclass(frozen=True)
class Roof:
    """A device as the roofline sees it.

    ``bandwidth`` is in bytes a second; ``peaks`` are operations a second of matrix products by
    format, dense; ``source`` says who says so.
    """

    name: str
    bandwidth: float
    peaks: Mapping[str, float]
    source: str = ""

    def peak(self, format: str) -> float:
        """Operations a second in a format.

        Raises:
            ValueError: a format without a peak here.
        """
        if format not in self.peaks:
            known = ", ".join(self.peaks)
            hint = did_you_mean(format, self.peaks)
            raise ValueError(f'format="{format}": {self.name} has {known}{hint}')
        return self.peaks[format]

    def ridge(self, format: str) -> float:
        """The intensity from which on work in a format is compute-bound."""
        return ridge_point(self.peak(format), self.bandwidth)

    def attainable(self, work: Work, format: str) -> float:
        """The most operations a second that this work can reach."""
        return attainable(work.intensity, peak=self._speed(work, format), bandwidth=self.bandwidth)

    def bound(self, work: Work, format: str) -> Bound:
        """What holds this work back; at the ridge itself it is the arithmetic."""
        ridge = ridge_point(self._speed(work, format), self.bandwidth)
        return "compute" if work.intensity >= ridge else "memory"

    def seconds(self, work: Work, format: str) -> float:
        """What this work takes by the model: its arithmetic or its bytes, whichever is more."""
        return max(work.flops / self._speed(work, format), work.bytes / self.bandwidth)

    def _speed(self, work: Work, format: str) -> float:
        # Tensor cores multiply matrices and nothing else; the rest runs on float32 units.
        return self.peak(format if work.product else "float32")


_DRAWN = ("float32", "tfloat32", "float16", "bfloat16", "float8_e4m3fn")
"""What a roof is drawn for: 8 bits once, and not 4, whose scales of blocks are moved as well."""


def _on_paper(gpu: GpuFacts) -> Roof:
    peaks = {format: gpu.dense_peaks[format] for format in _DRAWN if format in gpu.dense_peaks}
    return Roof(gpu.name, gpu.bandwidth, peaks, gpu.source)


STATED: dict[str, Roof] = {name: _on_paper(gpu) for name, gpu in GPUS.items()}
"""The GPUs of `mpbook.device_facts` as roofs, by name."""


def measure_roof(
    device: str | torch.device | None = None,
    *,
    size: int | None = None,
    elements: int | None = None,
    readings: int = 9,
) -> Roof:
    """The roof of a device as this process finds it: by a copy, and by a large product.

    Formats that the device does not multiply natively are left out, and so are those of 8 bits and
    fewer.  The best reading counts, since whatever else runs can only slow it down.

    Args:
        device: ``"cuda"``, ``"cpu"`` or None for the best there is.
        size: of the square matrices; by default 8192 on a GPU and 512 on a CPU.
        elements: float32 numbers to copy, more than the caches hold; by default 2**28 and 2**24.
        readings: of each.

    Raises:
        RuntimeError, ValueError: as `mpbook.device.pick`; a count below 1.
    """
    chosen = devices.pick(device)
    size = size or devices.sized(cpu=512, gpu=8192, device=chosen)
    elements = elements or devices.sized(cpu=2**24, gpu=2**28, device=chosen)
    _check(size=size, elements=elements, readings=readings)
    source = torch.zeros(elements, device=chosen)
    target = torch.empty_like(source)
    copy = time_calls(target.copy_, [(source,)], device=chosen, readings=readings)
    bandwidth = 2 * source.nbytes / copy.low
    peaks = {f: _product_rate(f, size, chosen, readings) for f in _native(chosen)}
    return Roof(devices.name(chosen), bandwidth, peaks, "measured here")


def _native(device: torch.device) -> list[str]:
    found = {c.format for c in devices.capabilities(device) if c.support == "native"}
    return [f for f in ("float32", "float16", "bfloat16") if f in found]


def _product_rate(format: str, size: int, device: torch.device, readings: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, format)) for _ in range(2))
    spread = time_calls(torch.matmul, [(a, b)], device=device, readings=readings)
    return matmul(size, size, size, format).flops / spread.low


# --- Pictures -----------------------------------------------------------------------------------


def figure(roof: Roof, points: Sequence[tuple[Work, str, float]] = ()) -> Figure:
    """The roof of each format, with points below it.

    Args:
        roof: of a device.
        points: work, its format, and the rate that it reached or may reach, in operations a second.
    """
    from mpbook import plots

    drawn, axis = plots.figure(figsize=(7, 4))
    low, high = 0.1, 4 * max([*map(roof.ridge, roof.peaks), *(w.intensity for w, *_ in points)])
    for format, peak in roof.peaks.items():
        ridge = roof.ridge(format)
        heights = [low * roof.bandwidth, peak, peak]
        axis.plot([low, ridge, high], heights, label=format, **plots.line(format))
    for work, format, rate in points:
        colour: Any = plots.COLOURS[format]
        axis.plot(work.intensity, rate, "o", color=colour, ms=6, mec="white", mew=0.8)
    axis.set(xscale="log", yscale="log", xlim=(low, high), title=roof.name)
    axis.set(xlabel="operations per byte", ylabel="operations per second")
    axis.legend(loc="lower right")
    return drawn
