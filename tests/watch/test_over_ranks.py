"""What several ranks saw, joined: counts add up, copies count once, doubts are shared by all."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from mpbook.formats import as_format
from mpbook.watch import Histogram, Probe, log2_histogram
from mpbook.watch.operators_within import Exceeding
from mpbook.watch.over_ranks import Seen, joined

ONE, TWO = log2_histogram(torch.ones(3)), log2_histogram(torch.full((5,), 2.0))


def seen(**changes: Any) -> Seen:
    """What a rank saw of one linear layer."""
    kinds = ("activations", "weights", "weight_gradients", "updates")
    usual = Seen(
        kinds=kinds,  # type: ignore[arg-type]
        modules=("layer",),
        parameters=("layer.weight", "layer.bias"),
        scaled=False,
        watched_steps=2,
        histograms={("weight_gradients", "layer.weight"): ONE},
        dtypes={"weight_gradients": {torch.float32}},
        copies=frozenset(),
        inputs=ONE,
        exceeding={},
        compiled=(),
        elsewhere=(),
        noise=(),
    )
    return dataclasses.replace(usual, **changes)


def test_counts_of_the_ranks_add_up() -> None:
    other = seen(
        histograms={
            ("weight_gradients", "layer.weight"): TWO,
            ("weight_gradients", "layer.bias"): ONE,
        }
    )
    report = joined([seen(), other], whose="2 ranks")
    assert report.histogram("weight_gradients", "layer.weight") == ONE + TWO
    assert report.histogram("weight_gradients", "layer.bias") == ONE
    assert report.histogram("weight_gradients") == ONE + TWO + ONE
    assert report.layers("weight_gradients") == ["layer.weight", "layer.bias"]


@pytest.mark.parametrize(("kind", "once"), [("weights", True), ("updates", True),
                                            ("weight_gradients", False)])  # fmt: skip
def test_a_copy_of_a_weight_counts_once_and_its_gradients_on_each_rank(
    kind: str, once: bool
) -> None:
    place = {(kind, "layer.weight"): ONE}
    first = seen(histograms=place)
    second = seen(histograms=place, copies=frozenset({"layer.weight"}))
    found = joined([first, second], whose="2 ranks").histogram(kind)  # type: ignore[arg-type]
    assert found == (ONE if once else ONE + ONE)


def test_steps_are_the_most_that_a_rank_watched() -> None:
    report = joined([seen(watched_steps=3), seen(watched_steps=4)], whose="2 ranks")
    assert report.watched_steps == 4
    assert "in 4 watched steps of 2 ranks" in str(report.table("float16"))


def test_gradients_are_noise_and_weights_unseen_where_they_are_so_on_every_rank() -> None:
    first = seen(noise=("layer.bias", "layer.weight"), elsewhere=("layer.weight",))
    second = seen(noise=("layer.bias",), elsewhere=("layer.weight", "layer.bias"))
    sights = joined([first, second], whose="2 ranks")._sights()
    assert sights.noise == ["layer.bias"]
    assert sights.elsewhere == ["layer.weight"]


def test_inputs_and_compiled_parts_are_those_of_all_ranks() -> None:
    first, second = seen(compiled=("a",)), seen(inputs=TWO, compiled=("b", "a"))
    sights = joined([first, second], whose="2 ranks")._sights()
    assert sights.inputs == ONE + TWO
    assert sights.compiled == ["a", "b"]


def test_an_operator_that_leaves_the_range_is_named_once_at_its_largest() -> None:
    def exp(largest: float, place: str = "layer") -> Exceeding:
        return Exceeding(place, "exp", operand=False, largest=largest)

    first = seen(exceeding={"float16": [exp(1e5), exp(7e5, "head")]})
    second = seen(exceeding={"float16": [exp(3e5)], "bfloat16": [exp(1e39)]})
    report = joined([first, second], whose="2 ranks")
    assert report._exceeding(as_format("float16")) == [exp(3e5), exp(7e5, "head")]
    assert report._exceeding(as_format("float8_e5m2")) == []
    assert "exp in layer reaches 3e+05" in report.needs_loss_scaling("float16").reason


def test_16_bit_gradients_of_one_rank_are_a_caution_for_all() -> None:
    other = seen(dtypes={"weight_gradients": {torch.float16}})
    reason = joined([seen(), other], whose="2 ranks").needs_loss_scaling("float16").reason
    assert "the gradients seen were float16" in reason


@pytest.mark.parametrize(
    "changes",
    [{"kinds": ("weights",)}, {"modules": ("head",)}, {"parameters": ()}, {"scaled": True}],
)
def test_ranks_that_watched_other_things_do_not_add_up(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rank 1 watched another model, other kinds or with an"):
        joined([seen(), seen(**changes)], whose="2 ranks")


def test_one_process_is_all_ranks() -> None:
    layer = torch.nn.Linear(2, 2)
    with Probe(layer) as probe:
        layer(torch.ones(3, 2)).sum().backward()
    for report in (probe.over_ranks(), probe.of_this_rank()):
        assert report.histogram("activations") == probe.histogram("activations")
        assert str(report.table("float16")) == str(probe.table("float16"))
        assert report.needs_loss_scaling("float16") == probe.needs_loss_scaling("float16")


def test_counts_of_a_group_that_is_gone_are_not_taken_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probe = Probe(torch.nn.Linear(2, 2))
    monkeypatch.setattr("mpbook.watch.over_ranks.rank_and_ranks", lambda: (1, 4))
    with probe:
        probe.model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match=r"what rank 1 of 4 saw; call over_ranks\(\) on every"):
        probe.histogram("activations")
    assert probe.of_this_rank().histogram("activations") != Histogram()
    assert probe.of_this_rank().histogram("weights").total == 6  # though rank 0 has them too
    monkeypatch.setattr("mpbook.watch.over_ranks.rank_and_ranks", lambda: (0, 1))
    with pytest.raises(RuntimeError, match=r"before destroy_process_group\(\)"):
        probe.over_ranks()
