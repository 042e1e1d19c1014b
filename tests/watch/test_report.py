"""What a probe reports of its counts: layers, tables, a figure, the verdict on loss scaling."""

import copy

import matplotlib as mpl
import pytest
import torch
from torch import nn
from watched_models import backward, batch, small_mlp, step

from mpbook.watch.probe import Probe
from mpbook.watch.report import KINDS

mpl.use("agg")

# --- Reading ------------------------------------------------------------------------------------


def test_a_probe_that_saw_nothing_says_so():
    probe = Probe(small_mlp())
    for ask in (
        lambda: probe.histogram("activations"),
        lambda: probe.table("float16"),
        lambda: probe.plot("float16"),
        lambda: probe.needs_loss_scaling("float16"),
    ):
        with pytest.raises(RuntimeError, match=r"has seen no .* in 0 watched steps; train inside"):
            ask()


def test_unknown_kinds_and_layers_are_named():
    model = small_mlp()
    with pytest.raises(ValueError, match=r"kinds=\['gradients'\]: expected a list, of activations"):
        Probe(model, kinds=["gradients"])
    for kinds in ([], "weights"):
        with pytest.raises(ValueError, match=r"kinds=.*expected a list"):
            Probe(model, kinds=kinds)
    with Probe(model, kinds=["weights"]) as probe:
        model(batch())
    with pytest.raises(ValueError, match="kind='activations': expected one that is watched: weigh"):
        probe.layers("activations")
    with pytest.raises(ValueError, match=r"layer='0.weigt': has no weights; did you mean '0.weigh"):
        probe.histogram("weights", "0.weigt")
    with pytest.raises(
        ValueError, match=r"layer='xyz': has no weights; expected one of 0.weight, "
    ):
        probe.histogram("weights", "xyz")


def test_kinds_come_in_their_usual_order_each_once():
    assert Probe(small_mlp(), kinds=["weights", "activations", "weights"]).kinds == (
        "activations",
        "weights",
    )


def test_without_an_optimizer_there_are_no_updates():
    assert Probe(small_mlp()).kinds == KINDS[:4]
    with pytest.raises(ValueError, match='"updates" need an optimizer'):
        Probe(small_mlp(), kinds=["updates"])


def test_an_optimizer_of_other_weights_is_refused():
    model = small_mlp()
    other = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"holds a parameter of shape \(8, 6\) that is not the mod"
    ):
        Probe(model, other)
    with pytest.raises(
        TypeError, match=r"optimizer is a float: expected a torch\.optim\.Optimizer"
    ):
        Probe(model, 0.1)


def watched_step() -> Probe:
    model = small_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Probe(model, optimizer) as probe:
        step(model, optimizer, batch())
    return probe


def test_the_table_has_a_row_for_each_kind():
    probe = watched_step()
    table = probe.table("float8_e4m3fn")
    fates = ["zero", "underflows", "subnormal", "normal", "overflows", "nonfinite"]
    assert list(table.header) == ["", "values", *fates]
    assert [row[0] for row in table.rows] == [kind.replace("_", " ") for kind in KINDS]
    histogram = probe.histogram("activations")
    assert table.rows[0][1:] == [175, *histogram.fates("float8_e4m3fn").percent()]
    assert table.caption == "In float8_e4m3fn, percent of the values in 1 watched steps"
    assert sum(table.rows[1][2:]) == pytest.approx(100, abs=0.2)


def test_the_table_may_have_a_row_for_each_layer():
    probe = watched_step()
    table = probe.table("float16", by="layer", kinds=["weights", "activations"])
    assert list(table.header)[:3] == ["", "layer", "values"]
    names = [("activations", layer) for layer in "01234"]
    names += [("weights", layer) for layer in probe.layers("weights")]
    assert [tuple(row[:2]) for row in table.rows] == names
    one = probe.histogram("activations", "1")
    assert table.rows[1][2:] == [one.total, *one.fates("float16").percent()]


def test_bad_tables_are_refused():
    probe = watched_step()
    with pytest.raises(ValueError, match='by=\'row\': expected "kind" or "layer"'):
        probe.table("float16", by="row")
    with pytest.raises(ValueError, match="expected a list, of"):
        probe.table("float16", kinds=["gradients"])
    with pytest.raises(ValueError, match="expected one of float32"):
        probe.table("fp1")


def test_kinds_of_which_nothing_was_seen_are_left_out():
    model = small_mlp()
    with Probe(model) as probe, torch.no_grad():
        model(batch())
    assert [row[0] for row in probe.table("float16").rows] == ["activations", "weights"]


def test_the_plot_has_a_panel_for_each_kind():
    probe = watched_step()
    titles = [axis.get_title().split("\n")[0] for axis in probe.plot("float16").axes]
    assert titles == [kind.replace("_", " ") for kind in KINDS]
    assert len(probe.plot("bfloat16", kinds=["updates"]).axes) == 1


# --- The verdict --------------------------------------------------------------------------------


def half_gradients(model: nn.Module, scale: float) -> list[torch.Tensor]:
    """Weight gradients of a float16 autocast pass, unscaled."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = model(batch()).float().square().mean() * 2.0**-30
    (loss * scale).backward()
    return [p.grad / scale for p in model.parameters()]


def test_the_verdict_comes_true_under_autocast():
    model = small_mlp()
    with Probe(model) as probe:
        (model(batch()).square().mean() * 2.0**-30).backward()
    exact = [p.grad.clone() for p in model.parameters()]
    verdict = probe.needs_loss_scaling("float16")
    assert verdict.verdict == "needed"
    assert probe.needs_loss_scaling("bfloat16").verdict == "not needed"
    assert not any(g.any() for g in half_gradients(model, 1.0))
    for saved, true in zip(half_gradients(model, verdict.scale), exact, strict=True):
        assert torch.allclose(saved, true, rtol=0.05, atol=true.abs().max().item() / 100)


def test_an_ordinary_model_needs_none():
    verdict = watched_step().needs_loss_scaling("float16")
    assert (verdict.verdict, verdict.scale) == ("not needed", 1.0)
    assert list(verdict.worst) == ["activation_gradients", "weight_gradients"]


def test_activations_that_overflow_decide():
    model = small_mlp()
    with torch.no_grad():
        model[2].weight *= 1e6
    with Probe(model) as probe:
        backward(model, batch())
    verdict = probe.needs_loss_scaling("float16")
    assert verdict.verdict == "does not help"
    assert verdict.reason.startswith("activations of 2, 3, 4 overflow float16")
    with Probe(model, kinds=["activation_gradients", "weight_gradients"]) as blind:
        backward(model, batch())
    assert "activations of" not in blind.needs_loss_scaling("float16").reason


def test_how_much_may_be_lost_is_passed_on():
    model = small_mlp()
    with Probe(model) as probe:
        (model(batch()).square().mean() * 2.0**-19).backward()
    lost = max(loss.magnitude for loss in probe.needs_loss_scaling("float16").worst.values())
    assert 0 < lost < 0.99
    assert probe.needs_loss_scaling("float16", lost=lost * 1.01).verdict == "not needed"
    assert probe.needs_loss_scaling("float16", lost=lost * 0.99).verdict == "needed"


@pytest.mark.parametrize(
    ("seen", "asked", "loss_scale", "expected"),
    [
        (torch.float16, "float16", None, True),
        (torch.bfloat16, "float16", None, False),
        (torch.float16, "bfloat16", None, True),
        (torch.float16, "float8_e4m3fn", None, False),
        (torch.float16, "float16", 1.0, False),
        (torch.float32, "float32", None, False),
        (torch.float64, "float16", None, False),
    ],
)
def test_zeros_seen_in_a_narrow_format_come_with_a_caution(seen, asked, loss_scale, expected):
    model = nn.Linear(6, 3).to(seen)
    with Probe(model, loss_scale=loss_scale) as probe:
        backward(model, batch().to(seen))
    caution = f"{str(seen).removeprefix('torch.')}, whose zeros may be underflows"
    assert (caution in probe.needs_loss_scaling(asked).reason) is expected


def test_a_verdict_needs_gradients():
    model = small_mlp()
    with Probe(model, kinds=["weights"]) as probe:
        backward(model, batch())
    with pytest.raises(ValueError, match="no gradients are watched, only weights"):
        probe.needs_loss_scaling("float16")
    with Probe(model) as probe:
        (model(batch()) * 0).sum().backward()
    with pytest.raises(RuntimeError, match="all 330 gradients that it saw were zero"):
        probe.needs_loss_scaling("float16")


@pytest.mark.parametrize("scaler", [True, False])
def test_a_run_that_has_failed_is_said_to_have_failed(scaler):
    model = small_mlp()
    with torch.no_grad():
        model[-1].weight.mul_(1e30)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaling = torch.amp.GradScaler("cpu", enabled=scaler)
    with Probe(model, optimizer) as probe:
        for _ in range(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = model(batch()).float().square().mean()
            scaling.scale(loss).backward()
            scaling.step(optimizer)
            scaling.update()
    with pytest.raises(RuntimeError, match=r"this run has failed already.*watch a float32"):
        probe.needs_loss_scaling("float16")
