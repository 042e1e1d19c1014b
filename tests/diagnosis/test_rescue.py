"""The fewest parts to keep in float32: found, tried, and printed so that they can be pasted."""

from __future__ import annotations

import linecache
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mpbook.diagnosis.autocast_of import autocast_of
from mpbook.diagnosis.diagnosing import diagnose
from mpbook.diagnosis.float32_parts import Float32Lines, keep_in_float32
from mpbook.diagnosis.places import LOSS, Place, line_of_the_caller
from mpbook.diagnosis.rescue import Rescue
from mpbook.diagnosis.zoo import FAILING

CPU = torch.device("cpu")
X, Y = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


class Square(nn.Module):
    """Squares that overflow, between two layers that do not."""

    def forward(self, x: Tensor) -> Tensor:
        squares = x * x  # overflows
        return squares.sqrt() / 1000


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), Square(), nn.Linear(8, 3))


def test_one_line_of_a_module_is_enough() -> None:
    found = diagnose(model(), (2000 * X, Y), loss=F.cross_entropy)
    rescue = found.formats["float16"].rescue
    assert rescue is not None and rescue.holds
    (place,) = rescue.places
    assert "# overflows" in linecache.getline(place.file, place.line)
    assert "squares = x * x" in rescue.code and "enabled=False" in rescue.code
    assert any(rescue.code == one.lines for one in found.advice)


def test_a_module_that_torch_calls_is_kept_as_a_whole_and_its_code_runs() -> None:
    batch = (1e5 * X, Y)
    plain = nn.Sequential(nn.Linear(8, 3), nn.LayerNorm(3), nn.Linear(3, 3))
    rescue = diagnose(plain, batch, loss=F.cross_entropy).formats["float16"].rescue
    assert rescue is not None and rescue.holds and [p.module for p in rescue.places] == ["0"]
    exec(rescue.code, {"torch": torch, "model": plain, "device_type": "cpu"})
    with autocast_of("cuda", torch.float16, CPU):
        assert plain(batch[0]).isfinite().all()


class Named(nn.Module):
    """Calls a layer by keyword, with tensors in a nest and what is none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.layers = nn.Linear(8, 8), nn.ModuleList([Nested(), nn.Linear(8, 3)])

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.before(x)
        return self.layers[1](self.layers[0](pair=(hidden, hidden), indices=Y, scale=300))


class Nested(nn.Module):
    """Overflows, of what it takes by keyword."""

    def forward(self, *, pair: tuple[Tensor, Tensor], indices: Tensor, scale: float) -> Tensor:
        assert indices.dtype == torch.int64
        return (pair[0] * scale) * (pair[1] * scale) / 1e6


def test_a_module_that_is_called_by_keyword_and_with_nests_is_kept_as_well() -> None:
    model = Named()
    code = Rescue("float16", (Place("layers.0"),), holds=True).code
    with autocast_of("cuda", torch.float16, CPU):
        assert not model(30 * X).isfinite().all()
        exec(code, {"torch": torch, "model": model, "device_type": "cpu"})
        assert model(30 * X).isfinite().all()


def test_a_pasted_module_leaves_float64_and_integers_as_they_are() -> None:
    class Kinds(nn.Module):
        def forward(self, *given: Tensor) -> list[torch.dtype]:
            return [tensor.dtype for tensor in given]

    model = nn.Sequential(Kinds())
    exec(
        Rescue("float16", (Place("0"),), holds=True).code,
        {"torch": torch, "model": model, "device_type": "cpu"},
    )
    given = (
        torch.ones(1, dtype=d) for d in (torch.float64, torch.int32, torch.float16, torch.bfloat16)
    )
    assert model[0](*given) == [torch.float64, torch.int32, torch.float32, torch.float32]


@pytest.mark.parametrize(
    "name", ["a norm by x * x", "eps of 1e-8 under a row of zeros", "binary_cross_entropy"]
)
def test_no_part_is_kept_that_is_not_needed(name: str) -> None:
    case = next(case for case in FAILING if case.name == name)
    built, batches = case.built()
    found = diagnose(built, batches, loss=case.loss, formats=["float16"], steps=1)
    rescue = found.formats["float16"].rescue
    assert rescue is not None and rescue.holds and len(rescue.places) == 1


@pytest.mark.parametrize("loss", [F.binary_cross_entropy, nn.BCELoss()], ids=["function", "module"])
def test_a_loss_without_a_line_is_kept_as_a_whole(loss: Any) -> None:
    unit = nn.Sequential(nn.Linear(8, 1), nn.Sigmoid(), nn.Flatten(0))
    found = diagnose(unit, (X, (Y > 0).float()), loss=loss, formats=["float16"], steps=1)
    rescue = found.formats["float16"].rescue
    assert rescue is not None and rescue.holds and rescue.places == (Place(LOSS),)
    assert "loss_function(output.float(), target)" in rescue.code


def test_what_nothing_rescues_says_so() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            is_narrow = torch.get_autocast_dtype("cpu") == torch.float16
            if is_narrow and torch.is_autocast_enabled("cpu"):
                raise RuntimeError("no float16")
            return self.layer(x)

    found = diagnose(Narrow(), (X, Y), loss=F.cross_entropy)
    rescue = found.formats["float16"].rescue
    assert rescue is not None and not rescue.holds and not rescue.places
    assert any(one.what.startswith("train in bfloat16") for one in found.advice)
    alone = diagnose(Narrow(), (X, Y), loss=F.cross_entropy, formats=["float16"]).advice
    assert [a.what.partition(":")[0] for a in alone] == ["no few lines are known to mend it"]


class Angles(nn.Module):
    """Angles between vectors and their near neighbours, by a product that 16 bits round to 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.normalize(x + 0.01 * self.layer(x), dim=-1)
        cosines = hidden @ F.normalize(x, dim=-1).mT  # spoilt
        return torch.acos(cosines)


def _log_determinant(output: Tensor) -> Tensor:
    factor = torch.linalg.cholesky(output.float() + 1e-5 * torch.eye(len(output)))
    return -factor.diagonal().log().sum()


class Covariance(nn.Module):
    """A matrix of low rank, made by a product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        return hidden.mT @ hidden / len(hidden)  # spoilt


@pytest.mark.parametrize("format", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("module", "loss", "batch", "first"),
    [
        (Angles, lambda output: output.mean(), (X,), "autocast runs this operator in float32"),
        (Covariance, _log_determinant, (torch.cat([X[:3]] * 5),), "rounding has made this matrix"),
    ],
)
def test_what_spoils_an_operand_is_found_behind_what_fails(
    module: type[nn.Module], loss: Any, batch: Any, first: str, format: str
) -> None:
    found = diagnose(module(), batch, loss=loss, formats=[format])
    rescue = found.formats[format].rescue
    assert rescue is not None and rescue.holds and rescue.because == "rounding"
    (place,) = rescue.places
    assert "# spoilt" in linecache.getline(place.file, place.line)
    assert found.advice[0].what.startswith(first) and found.advice[1].lines == rescue.code


class Waves(nn.Module):
    """Sines of phases that a large factor multiplies: their rounding, and their weights', too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.phases, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        phases = self.phases(x)  # spoilt
        return self.head(torch.sin(3000 * phases))


def test_an_ill_conditioned_model_hears_which_line_to_keep_where_that_is_enough() -> None:
    found = diagnose(Waves(), (X, Y), loss=F.cross_entropy)
    for format in ("float16", "bfloat16"):
        rescue = found.formats[format].rescue
        assert found.survives(format) == "yes" and found.of(format).total > 0.3
        assert rescue is not None and rescue.holds and rescue.total < 0.1
        (place,) = rescue.places
        assert "# spoilt" in linecache.getline(place.file, place.line)
        assert [a.lines for a in found.advice if a.format == format] == [rescue.code]


def test_a_module_in_float32_takes_and_gives_float32() -> None:
    layers = model()
    keep_in_float32(layers, ["2"])
    with autocast_of("cuda", torch.float16, CPU):
        assert layers(X).dtype == torch.float32
    with pytest.raises(ValueError, match='"9" is no module'):
        keep_in_float32(layers, ["9"])


def test_a_line_in_float32_is_that_line_alone() -> None:
    half, here = torch.ones(2).half(), line_of_the_caller()
    with Float32Lines([(here[0], here[1] + 2)]):
        assert (half * 300 * 300).dtype == torch.float32
        assert (half * 300).dtype == torch.float16
