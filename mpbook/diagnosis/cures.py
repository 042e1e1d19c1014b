"""What mends what: sentences, lines to paste and sections, by operator, by message and by cause."""

from __future__ import annotations

from mpbook.diagnosis.places import Seen, is_like_a_mask
from mpbook.diagnosis.rescue import Because
from mpbook.master_weights import SIXTEEN_BIT

Cure = tuple[str, str, str]
"""What to do, lines to paste, and the section of the book about it."""

LOOP = """scaler = torch.amp.GradScaler(init_scale=2.0**{exponent:.0f})
with torch.autocast(device_type, dtype=torch.float16):
    loss = {loss}
scaler.scale(loss).backward()
scaler.step(optimizer)
scaler.update()"""

TOO_LARGE = (
    "this loss is too large for float16's gradients: bring it down (standardise its targets, take "
    "a mean instead of a sum), or start the scaler below 1"
)

BFLOAT16 = """with torch.autocast(device_type, dtype=torch.bfloat16):
    loss = {loss}"""

_ATTENTION = (
    "put the scale before the product of queries and keys, or use the fused attention",
    "scores = (query * scale) @ key.mT\n# or: F.scaled_dot_product_attention(query, key, value)",
    "recipe/autocast_traps.html#autocast-inf-float16",
)
"""Of a product whose result a softmax takes."""

EPS = (
    "an eps below 6e-8 is 0 in float16, and below 6e-5 has few digits: raise it, or divide in "
    "float32",
    "y = x.float() / (norm.float() + 1e-8)",
    "numbers/precision_formats_traps.html#formats-eps",
)
_DIVIDES = frozenset("div div_ reciprocal rsqrt".split())
DIFFERENCE = (
    "this divisor is 0 in bfloat16 too, which keeps an eps of 1e-8: a difference of nearly equal "
    "numbers, as 1 - 0.999, rounds to 0: take it in float32, of what was never rounded",
    "left = 1 - x  # x in float32, and no float32 of a 16-bit x",
    "numbers/rounding_and_sums_traps.html#sums-variance",
)
"""Of a divisor that no eps makes 0."""

BY_OPERATOR: dict[str, Cure] = {
    "mm": (
        "scale the operands of this product down before it, or compute it in float32",
        "with torch.autocast(device_type, enabled=False):\n    y = a.float() @ b.float()",
        "recipe/autocast_traps.html#autocast-island",
    ),
    "mul": (
        "take the square or the product in float32: float16 ends at 65504, which is 256 squared",
        "norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # float32 under autocast\n"
        "# or, for a product: x.float() * y.float()",
        "numbers/rounding_and_sums_traps.html#sums-rms",
    ),
    "div": (
        "the quotient is beyond 65504: divide in float32, or bring down what is divided before",
        "y = x.float() / temperature",
        "recipe/autocast_traps.html#autocast-island",
    ),
    "log": (
        "take the logarithm of what was never rounded to 16 bits",
        "F.logsigmoid(x), x.log_softmax(-1)  # in place of a log of a probability",
        "numbers/precision_formats_traps.html#formats-eps",
    ),
    "sqrt": (
        "a difference of large numbers, such as a variance in one pass, can be negative in 16 "
        "bits: take it in float32",
        "variance = x.float().var(-1, keepdim=True, unbiased=False)",
        "numbers/rounding_and_sums_traps.html#sums-variance",
    ),
    "_to_copy": (
        "autocast casts this tensor to 16 bits, and it has numbers beyond 65504: normalise the "
        "inputs or the weights, or keep the module in float32",
        "inputs = (inputs - mean) / std",
        "recipe/loss_scaling_traps.html#ls-forward",
    ),
    "convolution": (
        "activations outgrow float16: normalise before this layer, or run it in bfloat16",
        "",
        "recipe/loss_scaling_traps.html#ls-forward",
    ),
}
BY_OPERATOR["bmm"] = BY_OPERATOR["baddbmm"] = BY_OPERATOR["mm"]
BY_OPERATOR["addmm"] = BY_OPERATOR["convolution"]
BY_OPERATOR["pow"] = BY_OPERATOR["mul"]
BY_OPERATOR["rsqrt"] = BY_OPERATOR["sqrt"]

ELSE = (
    "compute this operator in float32, or bring its operands down before it",
    "with torch.autocast(device_type, enabled=False):\n    ...  # its operands as .float()",
    "recipe/autocast_traps.html#autocast-island",
)

_SPOILT = (
    "autocast runs this operator in float32 already: its operands were spoilt in 16 bits before it",
    "",
    "numbers/rounding_and_sums_traps.html#sums-variance",
)
"""Of an operator that no float32 of its own mends."""

_GRADIENT = (
    "a gradient beyond 65504 is cast to 16 bits there, as that of a log or a quotient of small "
    "numbers: compute what it is of in float32",
    ELSE[1],
    "recipe/autocast_traps.html#autocast-island",
)

_INDEFINITE = (
    "rounding has made this matrix singular, or not positive definite: build it in float32",
    "with torch.autocast(device_type, enabled=False):\n    matrix = x.float() @ x.float().mT",
    "numbers/rounding_and_sums_traps.html#sums-variance",
)

_MASK = (
    "fill a mask with the dtype's own smallest number",
    "scores = scores.masked_fill(mask, torch.finfo(scores.dtype).min)",
    "numbers/precision_formats_traps.html#mask-value",
)

_CUSTOM_FUNCTION = """class Mine(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type=device_type, cast_inputs=torch.float32)
    def forward(ctx, x): ...

    @staticmethod
    @torch.amp.custom_bwd(device_type=device_type)
    def backward(ctx, gradient): ..."""

_NO_KERNEL = (
    "this operator has no kernel in 16 bits: compute it in float32",
    "with torch.autocast(device_type, enabled=False):\n    y = operator(x.float())",
    "recipe/autocast_traps.html#autocast-not-implemented",
)
_TWO_DTYPES = (
    "two dtypes meet that autocast does not unite: cast one of them, and give an "
    "autograd.Function of your own torch.amp.custom_fwd and custom_bwd",
    _CUSTOM_FUNCTION,
    "recipe/autocast_traps.html#autocast-custom-function",
)

BY_MESSAGE: tuple[tuple[str, Cure], ...] = (
    (
        "unsafe to autocast",
        (
            "hand logits to the loss and no probabilities",
            "loss = F.binary_cross_entropy_with_logits(logits, target)",
            "recipe/autocast_traps.html#autocast-bceloss",
        ),
    ),
    (
        "without overflow",
        _MASK,
    ),
    *((words, _INDEFINITE) for words in ("positive-definite", "singular")),
    *((words, _TWO_DTYPES) for words in ("same dtype", "scalar type", "should be the same")),
    *((words, _NO_KERNEL) for words in ("not implemented for", "Low precision dtypes")),
    (
        "Unsupported dtype",  # of a CPU's FFT
        (
            "take Fourier transforms in float32: a GPU has them in float16 for powers of two only, "
            "and not in bfloat16",
            "spectrum = torch.fft.rfft(x.float())",
            "practice/own_model_traps.html#own-fft",
        ),
    ),
)

_POSITIONS = "formats_that_need_less/bf16.html#bf16-positions"
WHOLE_NUMBERS = (
    "positions, times or indices are rounded: make them in float32, and cast what follows",
    "positions = torch.arange(length, dtype=torch.float32)",
    _POSITIONS,
)
BEYOND = (
    "whole numbers beyond 65504 are cast to 16 bits: keep positions, times or indices in float32 "
    "and cast what follows; normalise what is data",
    *WHOLE_NUMBERS[1:],
)
BECAUSE: dict[Because, tuple[str, str]] = {
    "overflow": ("what overflows there is lost", "recipe/autocast_traps.html#autocast-island"),
    "whole numbers": ("16 bits cannot tell these whole numbers apart", _POSITIONS),
    "underflow": (
        "results there are below the normal numbers of 16 bits, where digits are lost or all is 0",
        "numbers/precision_formats_traps.html#formats-eps",
    ),
    "rounding": (
        "rounding there is too coarse, as of a difference of nearly equal numbers",
        "numbers/rounding_and_sums_traps.html#sums-variance",
    ),
}
"""What 16 bits do to places where a run is finite and wrong, and the section about it."""


def divides_by_0(seen: Seen) -> bool:
    """Whether an operator failed because a divisor is 0."""
    return seen.operator in _DIVIDES and " is 0" in seen.cause


def of_an_operator(seen: Seen, behind: Seen | None) -> Cure:
    """By what it is, why it failed, and what its result becomes NaN in."""
    if seen.operator in ("mm", "bmm", "baddbmm") and behind and behind.operator == "_softmax":
        return _ATTENTION
    is_wide = seen.dtype not in SIXTEEN_BIT
    if divides_by_0(seen):
        return _SPOILT if is_wide and seen.key.phase == "backward" else EPS
    if seen.operator == "_to_copy" and seen.key.phase == "backward":
        return _GRADIENT
    if is_like_a_mask(seen):
        return _MASK
    otherwise = _SPOILT if is_wide and seen.signs == {"nan"} else ELSE
    return BY_OPERATOR.get(seen.operator, otherwise)
