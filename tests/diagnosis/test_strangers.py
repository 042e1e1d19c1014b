"""Loops, losses and models as others write them: each of these was once answered wrongly."""

from __future__ import annotations

import linecache
import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mpbook.diagnosis import diagnose
from mpbook.diagnosis.advice import advise
from mpbook.diagnosis.format_report import FormatReport
from mpbook.diagnosis.places import Place, is_theirs
from mpbook.diagnosis.verdicts import FormatVerdict
from mpbook.diagnosis.zoo import FAILING
from mpbook.diagnosis.zoo.cases import Lambda

SGD = partial(torch.optim.SGD, lr=0.01)
FAST: dict[str, Any] = {"formats": ["float16"], "steps": 2, "rescue": False}


def batch(*, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(16, 8, generator=generator), torch.arange(16) % 3


def mlp(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), *(middle or (nn.ReLU(),)), nn.Linear(16, 3))


def test_each_of_several_optimizers_has_its_gradients_unscaled() -> None:
    model = mlp()
    optimizers = [SGD(model[0].parameters()), SGD(model[2].parameters())]
    verdict = diagnose(model, batch(), loss=F.cross_entropy, optimizer=optimizers, **FAST).of(
        "float16"
    )
    assert verdict.survives == "yes"
    assert set(verdict.gradient_error) == {name for name, _ in model.named_parameters()}
    assert verdict.total < 0.01


def _with_a_closure(model: nn.Module, optimizer: Any, given: Any) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(given[0]), given[1])
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("make", [SGD, partial(torch.optim.LBFGS, max_iter=3)])
def test_a_closure_runs_under_autocast_and_its_gradients_are_unscaled(make: Any) -> None:
    model = mlp()
    optimizer = make(model.parameters())
    found = diagnose(model, batch(), step=_with_a_closure, optimizer=optimizer, **FAST)
    verdict = found.of("float16")
    assert verdict.survives == "yes" and verdict.total < 0.01
    assert verdict.tightest, "the forward pass was in 16 bits"
    assert not optimizer.state


@pytest.mark.parametrize("make", [SGD, partial(torch.optim.LBFGS, max_iter=3)])
def test_an_overflow_inside_a_closure_is_found(make: Any) -> None:
    model = mlp()
    found = diagnose(model, batch(scale=1e5), step=_with_a_closure,
                     optimizer=make(model.parameters()), **FAST)  # fmt: skip
    verdict = found.of("float16")
    assert verdict.survives == "no"
    assert verdict.failure is not None and verdict.failure.operator == "_to_copy"


def _checked(x: Tensor) -> Tensor:
    squares = (100 * x) @ (100 * x).mT
    assert squares.isfinite().all(), "scores are not finite"
    return x + 0 * squares.mean()


def _by_dtype(x: Tensor) -> Tensor:
    return x * {torch.float32: 1.0}[x.dtype]


@pytest.mark.parametrize(
    ("function", "error"), [(_checked, "AssertionError"), (_by_dtype, "KeyError")]
)
def test_whatever_a_model_raises_in_a_format_is_the_verdict(function: Any, error: str) -> None:
    found = diagnose(mlp(Lambda(function)), batch(scale=5), loss=F.cross_entropy, **FAST)
    verdict = found.of("float16")
    assert verdict.survives == "no" and error in verdict.reason
    line = linecache.getline(verdict.suspects[0].file, verdict.suspects[0].line)
    assert "assert" in line or "x.dtype" in line


def test_a_model_that_needs_its_whole_batch_has_no_slope_of_memory() -> None:
    model = mlp(Lambda(lambda x: x[torch.arange(15, -1, -1)]))
    found = diagnose(model, batch(), loss=F.cross_entropy, **FAST)
    assert found.survives("float16") == "yes"
    memory = found.formats["float16"].memory
    assert memory is not None and memory.for_each_example is None


@pytest.mark.parametrize("kind", ["mapping", "tuple"])
def test_a_loss_may_have_logs_beside_it(kind: str) -> None:
    def loss(output: Tensor, given: Any) -> Any:
        value = F.cross_entropy(output, given[1])
        return {"loss": value, "step": 1} if kind == "mapping" else (value, {"step": 1})

    assert diagnose(mlp(), batch(), loss=loss, optimizer=SGD, **FAST).survives("float16") == "yes"


def test_a_loss_that_gives_none_says_so() -> None:
    with pytest.raises(ValueError, match="loss: it returned a dict without a loss in it"):
        diagnose(mlp(), batch(), loss=lambda output, given: {"logits": output}, **FAST)


def first_advice(name: str) -> str:
    case = next(case for case in FAILING if case.name == name)
    model, batches = case.built()
    found = diagnose(model, batches, loss=case.loss, optimizer=case.optimizer, **FAST)
    return found.advice[0].what


def test_advice_speaks_of_queries_only_where_a_softmax_follows() -> None:
    assert "queries and keys" in first_advice("scores before their scale")
    gram = mlp(Lambda(lambda x: x + 1e-9 * ((200 * x)[None] @ (200 * x).mT[None]).mean()))
    found = diagnose(gram, batch(scale=5), loss=F.cross_entropy, optimizer=SGD, **FAST)
    assert found.of("float16").failure is not None
    assert "operands of this product" in found.advice[0].what


def test_advice_speaks_of_an_eps_only_where_a_divisor_is_zero() -> None:
    assert "eps" in first_advice("eps of 1e-8 under a row of zeros")
    assert "quotient is beyond 65504" in first_advice("contrast of long features")


def test_a_gradient_that_overflows_is_no_mask_and_no_input() -> None:
    def products(x: Tensor) -> Tensor:
        return (x.sigmoid() * 2**-12 * 2**-12 * 2**-12).sum(-1)

    def loss(out: Tensor) -> Tensor:
        return -(out + 1e-30).log().mean()

    model = mlp(Lambda(products))[:2]
    first = diagnose(model, batch()[0], loss=loss, **FAST).advice[0]
    assert "a gradient beyond 65504" in first.what


def _over_what_is_left(x: Tensor) -> Tensor:
    left = 1 - torch.full_like(x, 0.9999)
    return x + 1e-4 * x / left


def _standardised(x: Tensor) -> Tensor:
    small = 1e-4 * x
    variance = (small * small).mean(-1, keepdim=True)
    return small / (variance.sqrt() + 1e-8)


def test_an_eps_is_not_blamed_for_a_difference_or_a_square_that_is_zero() -> None:
    found = diagnose(mlp(Lambda(_over_what_is_left)), batch(), loss=F.cross_entropy, steps=2)
    assert found.survives("bfloat16") == "no" and "eps below" not in found.to_do()
    assert all("difference of nearly equal numbers" in one.what for one in found.advice)
    options = {**FAST, "rescue": True}
    found = diagnose(mlp(Lambda(_standardised)), batch(), loss=F.cross_entropy, **options)
    failure, rescue = found.of("float16").failure, found.formats["float16"].rescue
    assert failure is not None and failure.operator == "div" and " is 0" in failure.cause
    assert rescue is not None and failure.key.place not in rescue.places
    assert "eps below" not in found.to_do() and "below the normal numbers" in found.advice[0].what


def test_a_model_that_casts_by_itself_is_not_told_that_no_format_is_to_blame() -> None:
    model = mlp(Lambda(lambda x: (x * 1e6).half().float()))
    found = diagnose(model, batch(), loss=F.cross_entropy, **FAST)
    assert found.survives("float16") == "fails in float32 too"
    assert "casts to 16 bits itself" in found.advice[0].what


def _falls_to_0_in_bfloat16_alone(x: Tensor) -> Tensor:
    one = (0 * x + 257) - 256  # 257 is no number of bfloat16's
    return x + 1e-6 * ((0 * x + 1000) / (one + 1e-3))


def test_headroom_is_the_runs_own_where_it_contradicts_the_forecast() -> None:
    model = mlp(Lambda(_falls_to_0_in_bfloat16_alone))
    found = diagnose(model, batch(), loss=F.cross_entropy, **FAST)
    verdict = found.of("float16")
    assert verdict.survives == "yes"
    assert verdict.forecast is not None and verdict.contradictions
    assert verdict.headroom > 5  # of 1000
    assert not found.advice


@pytest.mark.parametrize(
    "file",
    ["/tmp/ipykernel_41/2882429656.py", "<ipython-input-3-0a1b2c>", "/tmp/ipython-input-7-9.py"],
)
def test_a_line_of_a_notebook_is_named_by_its_words(file: str) -> None:
    assert is_theirs(file)
    source = "scores = query @ key.mT\n"
    linecache.cache[file] = len(source), None, [source], file
    try:
        said = str(Place("attention", file, 1))
    finally:
        del linecache.cache[file]
    assert said == "attention (line 1 of a cell: scores = query @ key.mT)"
    assert str(Place("attention", file, 1)) == "attention (line 1 of a cell)"


def test_there_is_advice_for_an_operator_that_has_none_of_its_own() -> None:
    model = mlp(Lambda(lambda x: 1e-6 * ((0 * x + 6e4) + (0 * x + 6e4)) + x))
    found = diagnose(model, batch(), loss=F.cross_entropy, **FAST)
    failure = found.of("float16").failure
    assert failure is not None and failure.operator == "add"
    assert "compute this operator in float32" in found.advice[0].what


def test_an_ill_conditioned_model_is_not_told_that_there_is_nothing_to_do() -> None:
    seen = FormatVerdict("bfloat16", "yes", "", total=0.9, sensitive=0.7)
    (found,) = advise({"bfloat16": FormatReport(seen)}, [])
    assert "90% off float32's" in found.what and "by 70%" in found.what


class OwnAutocast(nn.Module):
    """Beyond float16 inside its own region, which is in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            h = self.net[0](x)
            return self.net[2](h * h / 1e6).float()


def test_a_models_own_autocast_keeps_its_dtype_and_the_report_says_that_it_is_there() -> None:
    found = diagnose(OwnAutocast(), batch(scale=1e3), loss=F.cross_entropy, **FAST)
    assert found.survives("float16") == "yes"
    assert any("computes in 16 bits itself" in what for what, _ in found.unseen)
    plain = diagnose(mlp(), batch(), loss=F.cross_entropy, **FAST)
    assert not any("computes in 16 bits itself" in what for what, _ in plain.unseen)


# --- What was passed --------------------------------------------------------------------------


def test_an_overflow_that_an_error_follows_is_named_first() -> None:
    def chosen(x: Tensor) -> Tensor:
        logits = x * 300
        logits = logits * logits  # the squares
        torch.distributions.Categorical(logits=logits, validate_args=True)
        return x

    found = diagnose(mlp(Lambda(chosen)), batch(), loss=F.cross_entropy, formats=["float16"])
    verdict = found.of("float16")
    assert verdict.survives == "no" and verdict.failure is not None
    place = verdict.failure.key.place
    assert "# the squares" in linecache.getline(place.file, place.line)
    assert "is infinite" in verdict.reason and "then " in verdict.reason
    assert "raises ValueError" in verdict.reason
    assert "take the square or the product in float32" in found.advice[0].what
    rescue = found.formats["float16"].rescue
    assert rescue is not None and rescue.holds


def _with(value: float, *, kind: str) -> tuple[nn.Module, Any]:
    model, (x, y) = mlp(), batch()
    if kind == "weight":
        with torch.no_grad():
            model[0].weight[0, 0] = value
    else:
        x[1, 1] = value
    return model, (x, y)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("kind", "said"),
    [("weight", "not finite before the first step: 0.weight"),
     ("batch", "batch 1 holds NaN or infinity: tensor 1 of 2")],
)  # fmt: skip
def test_a_batch_or_weight_that_is_not_finite_is_named(value: float, kind: str, said: str) -> None:
    model, given = _with(value, kind=kind)
    found = diagnose(model, given, loss=F.cross_entropy)
    assert found.survives("float16") == found.survives("bfloat16") == "fails in float32 too"
    assert found.of("float16").reason == said
    (advice,) = found.advice
    assert advice.what == f"mend what was passed first: {said}"


def test_a_masks_minus_infinity_in_a_batch_is_no_fault_of_it() -> None:
    def loss(output: Tensor, given: Any) -> Tensor:
        return (output.softmax(-1) + given[1]).softmax(-1)[:, 0].log().mean()

    mask = torch.zeros(16, 3)
    mask[1] = -math.inf
    found = diagnose(mlp(), (batch()[0], mask), loss=loss)
    reason = found.of("float16").reason
    assert "holds NaN" not in reason and "NaN first in _softmax" in reason


def test_weights_that_were_passed_in_float16_and_fail_so_are_in_what_to_do() -> None:
    def told(dtype: torch.dtype) -> bool:
        x, y = batch()
        found = diagnose(mlp().to(dtype), (x.to(dtype), y), loss=F.cross_entropy,
                         optimizer=torch.optim.Adam, formats=["float16"])  # fmt: skip
        return any(one.what.startswith("they were passed so") for one in found.advice)

    assert told(torch.float16) and not told(torch.float32)


def test_a_fourier_transform_in_16_bits_has_its_section() -> None:
    def filtered(x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x), n=x.shape[-1])

    found = diagnose(mlp(Lambda(filtered)), batch(), loss=F.cross_entropy)
    assert found.advice[0].page.endswith("#own-fft")


class Twice(torch.autograd.Function):
    """A backward pass in the dtype that its constant has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] @ (2 * torch.eye(gradients[0].shape[-1]))


@pytest.mark.parametrize(
    ("function", "anchor"),
    [
        (Twice.apply, "autocast-custom-function"),
        (lambda x: x @ torch.linalg.inv(x.mT @ x), "autocast-not-implemented"),
        (
            lambda x: x.index_add(0, torch.arange(16), torch.ones(16, 16)),
            "autocast-custom-function",
        ),
    ],
    ids=["a function of one's own", "an operator without a kernel", "two dtypes"],
)
def test_what_an_operator_raises_has_its_section(function: Any, anchor: str) -> None:
    found = diagnose(mlp(Lambda(function)), batch(), loss=F.cross_entropy, formats=["float16"])
    assert " raises " in found.of("float16").reason
    assert found.advice[0].page.endswith(f"#{anchor}")
