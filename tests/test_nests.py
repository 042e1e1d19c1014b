"""Batches of any kind, taken apart and put together again."""

import dataclasses
from collections import OrderedDict, UserDict, namedtuple

import pytest
import torch

from mpbook.nests import called, chunks, kind, length, mapped, real_floats_to, tensors

Pair = namedtuple("Pair", ["x", "y"])


@dataclasses.dataclass(frozen=True)
class Fields:
    x: torch.Tensor
    y: torch.Tensor
    name: str = "fields"


@dataclasses.dataclass
class Defaults:
    x: torch.Tensor | None = None


Defaults.x = torch.ones(1)
A, B = torch.arange(4.0), torch.arange(8).view(4, 2)
NESTS = {
    "tuple": (A, B),
    "list": [A, [B]],
    "named tuple": Pair(A, B),
    "dict": {"x": A, "y": {"z": B}},
    "OrderedDict": OrderedDict(x=A, y=B),
    "UserDict": UserDict(x=A, y=B),
    "dataclass": Fields(A, B),
}


@pytest.mark.parametrize("nest", NESTS.values(), ids=NESTS)
def test_every_nest_keeps_its_kind(nest):
    found = list(tensors(nest))
    assert [t is one for t, one in zip(found, (A, B), strict=True)] == [True, True]
    doubled = mapped(lambda t: 2 * t, nest)
    assert type(doubled) is type(nest)
    for new, old in zip(tensors(doubled), found, strict=True):
        assert torch.equal(new, 2 * old)
    assert next(tensors(nest)) is A  # the original is as it was
    assert length(nest) == 4
    first, second = chunks(nest, 2)
    assert type(first) is type(nest)
    for whole, *parts in zip(found, tensors(first), tensors(second), strict=True):
        assert torch.equal(torch.cat(parts), whole)


def test_hugging_faces_outputs_keep_their_kind():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    nest = outputs.CausalLMOutput(loss=torch.tensor(1.0), logits=B)
    changed = mapped(lambda t: t + 1, nest)
    assert type(changed) is type(nest)
    assert changed.loss.item() == 2 and torch.equal(changed["logits"], B + 1)


def test_a_model_gets_its_batch_by_position_or_by_name():
    def model(*given, **named):
        return given, named

    assert called(model, (1, 2)) == ((1, 2), {})
    assert called(model, {"a": 1}) == ((), {"a": 1})
    assert called(model, Pair(1, 2)) == ((Pair(1, 2),), {})
    fields = Fields(A, B)
    assert called(model, fields) == ((fields,), {})


def test_lengths_have_to_agree():
    with pytest.raises(ValueError, match=r"tensors of \[2, 4\] examples"):
        length((A, A[:2]))
    with pytest.raises(ValueError, match="a dict of x without any"):
        length({"x": 3})
    assert length((A, torch.tensor(1.0))) == 4


def test_parts_are_of_one_size_and_what_has_no_dimension_is_in_each():
    parts = chunks({"x": torch.arange(5), "scale": torch.tensor(2)}, 2)
    assert [part["x"].tolist() for part in parts] == [[0, 1], [2, 3]]
    assert [part["scale"].item() for part in parts] == [2, 2]


def test_a_class_of_data_is_no_nest():
    assert mapped(lambda t: t + 1, [Fields, A])[0] is Fields
    assert list(tensors(Defaults)) == [] and kind(Defaults) == "type"


def test_only_real_floats_are_cast():
    cast = real_floats_to(torch.bfloat16)
    kinds = (torch.float32, torch.int64, torch.complex64, torch.bool)
    dtypes = [cast(torch.ones(1, dtype=dtype)).dtype for dtype in kinds]
    assert dtypes == [torch.bfloat16, torch.int64, torch.complex64, torch.bool]


def test_nests_have_names():
    assert kind(Fields(A, B)) == "Fields with x, y, name"
    assert kind((1, 2)) == "tuple of 2"
    assert kind(3) == "int"
