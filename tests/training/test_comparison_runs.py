"""`compare`: the runs that are made, in which order and from which start, and what is refused."""

from dataclasses import replace

import pytest
import torch
from made_up_runs import DEVICES, SETTINGS, data, model, run
from torch import nn

from mpbook.models import MLP
from mpbook.precision import PRECISIONS, Precision
from mpbook.training import comparison_runs, train
from mpbook.training.comparison_runs import CONTROL, compare
from mpbook.training.nudge import nudged


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, int]]:
    """Precision and seed of every run, in the order in which they are trained."""
    made = []

    def noted(*arguments, **options):
        made.append((options["precision"].name, options["seed"]))
        return train(*arguments, **options)

    monkeypatch.setattr(comparison_runs, "train", noted)
    return made


# --- the runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_every_run_is_what_train_makes_of_it(device):
    settings = SETTINGS | dict(device=device, clip_norm=1.0)
    names = ["32-true", "16-mixed", "bf16-true"]
    result = compare(model(), data(), names, seeds=[3, 5], **settings)
    assert list(result.runs) == names and result.seeds == (3, 5)
    for name, runs in result.runs.items():
        for seed, made in zip((3, 5), runs, strict=True):
            alone = train(model(), data(), precision=name, seed=seed, **settings)
            assert made.losses == alone.losses
            assert made.validation_losses == alone.validation_losses
            assert made.config == alone.config


def test_the_same_call_gives_the_same_numbers():
    first, second = (compare(MLP_of, data(), ["32-true", "16-mixed"], seeds=2, **SETTINGS)
                     for _ in range(2))  # fmt: skip
    for name in first.runs:
        for one, other in zip(first.runs[name], second.runs[name], strict=True):
            assert one.losses == other.losses and one.validation_losses == other.validation_losses
    assert repr(first.table()) == repr(second.table())


def MLP_of(seed: int) -> nn.Module:  # noqa: N802
    return MLP(6, 8, 2)


def test_a_function_gives_each_seed_initial_weights_of_its_own_that_its_precisions_share():
    asked = []

    def make(seed):
        asked.append(seed)
        return MLP(6, 8, 2)

    result = compare(make, data(), ["32-true", "bf16-mixed"], seeds=[7, 2], **SETTINGS)
    assert asked == [7, 2]
    for seed, *runs in zip(result.seeds, *result.runs.values(), strict=True):
        for made in runs:
            options = SETTINGS | dict(precision=made.precision, seed=seed)
            assert made.losses == train(model(seed), data(), **options).losses


def test_the_global_random_state_stays_as_it_is():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    compare(MLP_of, data(), ["32-true"], seeds=1, **SETTINGS)
    assert torch.equal(torch.rand(3), expected)


def test_precisions_take_turns_and_none_is_always_the_first(calls):
    result = compare(model(), data(), ["32-true", "16-mixed", "bf16-mixed"], seeds=4, **SETTINGS)
    assert [seed for _, seed in calls] == [s for s in range(4) for _ in range(3)]
    firsts = [name for name, _ in calls[::3]]
    assert firsts == ["32-true", "16-mixed", "bf16-mixed", "32-true"]
    for turn in range(4):
        assert {name for name, _ in calls[3 * turn : 3 * turn + 3]} == set(result.runs)


def test_eight_seeds_unless_asked_otherwise():
    assert compare(model(), data(), ["32-true"], **SETTINGS).seeds == tuple(range(8))


def test_a_trained_model_is_kept_only_on_request():
    options = dict(seeds=1, **SETTINGS)
    lean = compare(model(), data(), ["32-true"], **options)
    assert list(lean.runs["32-true"][0].model.parameters()) == []
    full = compare(model(), data(), ["32-true"], keep_models="all", **options)
    expected = train(model(), data(), precision="32-true", seed=0, **SETTINGS).model
    assert torch.equal(full.runs["32-true"][0].model[0].weight, expected[0].weight)


def test_precisions_of_ones_own_are_compared_under_their_names():
    mine = Precision("scaled by 8", compute_dtype=torch.float16, loss_scale=8.0)
    result = compare(model(), data(), ["32-true", mine], seeds=1, **SETTINGS)
    assert list(result.runs) == ["32-true", "scaled by 8"]
    assert result.runs["scaled by 8"][0].precision is mine


def test_progress_is_counted_in_runs(monkeypatch):
    lines = []

    class Recorder:
        def __init__(self, total, *, label, enabled):
            lines.append((total, label, enabled))

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            lines.append("closed")

        def update(self, done, note):
            lines.append((done, note))

    monkeypatch.setattr(comparison_runs, "Progress", Recorder)
    options = dict(seeds=[4, 6], progress=False, **SETTINGS)
    compare(model(), data(), ["32-true", "bf16-true"], **options)
    assert lines == [
        (4, "comparing", False),
        (0, "seed 4, 32-true"),
        (1, "seed 4, bf16-true"),
        (2, "seed 6, bf16-true"),
        (3, "seed 6, 32-true"),
        "closed",
    ]


def test_only_the_comparison_shows_a_progress_line(monkeypatch):
    asked = []
    monkeypatch.setattr(
        comparison_runs, "train", lambda *a, progress, **o: asked.append(progress) or run(1.0)
    )
    compare(model(), data(), ["32-true"], seeds=1, steps=1)
    assert asked == [False]


# --- the control ------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["32-true", "bf16-true"])
def test_the_control_is_the_baseline_from_a_nudged_start(base):
    names = ["16-mixed", base]
    options = dict(baseline=base, control=CONTROL, seeds=2, **SETTINGS)
    result = compare(MLP_of, data(), names, **options)
    assert list(result.runs) == [*names, CONTROL]
    for seed, made in zip(result.seeds, result.runs[CONTROL], strict=True):
        start = nudged(model(seed), dtype=PRECISIONS[base].parameter_dtype)
        alone = train(start, data(), precision=base, seed=seed, **SETTINGS)
        assert made.losses == alone.losses
        assert replace(made.precision, name=base) == PRECISIONS[base]
        assert made.precision.name == CONTROL


def test_a_nudge_moves_the_loss_far_less_than_another_seed_does():
    options = dict(control=CONTROL, seeds=4, **SETTINGS | dict(steps=30))
    result = compare(MLP_of, data(), ["32-true"], **options)
    found = result.difference(CONTROL)
    losses = result.values("32-true")
    assert max(map(abs, found.differences)) < 1e-3 * (max(losses) - min(losses))


def test_without_a_control_there_is_none_and_its_name_is_free(monkeypatch):
    named = replace(PRECISIONS["bf16-mixed"], name=CONTROL)
    with pytest.raises(ValueError, match='"1-ulp nudge" is what the control is called'):
        compare(model(), data(), ["32-true", named], control=CONTROL, **SETTINGS)
    monkeypatch.setattr(comparison_runs, "nudged", lambda *a, **o: pytest.fail("nothing to nudge"))
    result = compare(model(), data(), ["32-true", named], seeds=1, **SETTINGS)
    alone = train(model(), data(), precision="bf16-mixed", seed=0, **SETTINGS)
    assert result.runs[CONTROL][0].losses == alone.losses


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(precisions=[]), ValueError, "precisions: none given"),
        (dict(precisions="32-true"), TypeError, "precisions='32-true': expected a list"),
        (dict(precisions=PRECISIONS["tf32"]), TypeError, "expected a list of names"),
        (dict(precisions=["32-true", "fp64"]), ValueError, 'precision="fp64": expected one of'),
        (dict(precisions=["32-true", "bf16"]), ValueError, "ambiguous"),
        (dict(precisions=["32-true", "32-true"]), ValueError, 'two are called "32-true"'),
        (dict(baseline="tf32"), ValueError, 'baseline="tf32": expected one of 32-true, 16-mixed$'),
        (dict(seeds=0), ValueError, "seeds=0: expected at least 1, and 2 for an interval"),
        (dict(seeds=[]), ValueError, r"seeds=\[\]: expected at least 1"),
        (dict(seeds=[1, 2, 1]), ValueError, "seeds: 1 is there more than once"),
        (dict(control="nudge"), ValueError, 'control="nudge": expected one of none, 1-ulp nudge'),
        (dict(keep_models="some"), ValueError, 'keep_models="some": expected one of none, all'),
        (dict(seed=3), ValueError, "seed=3: cannot be the same for every run"),
        (dict(precision="32-true"), ValueError, "precision='32-true': cannot"),
        (dict(save_to="x"), ValueError, "save_to='x': cannot"),
        (dict(save_every=2), ValueError, "save_every=2: cannot"),
        (dict(resume_from="x"), ValueError, "resume_from='x': cannot"),
        (dict(model=lambda seed: None), TypeError, "model: gave None for seed 0, expected a torch"),
        (dict(batch_size=0), ValueError, "batch_size=0: expected at least 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(options, error, message, monkeypatch):
    given = dict(model=model(), data=data(), precisions=["32-true", "16-mixed"]) | SETTINGS
    with pytest.raises(error, match=message):
        compare(**given | options)


def test_mistakes_are_found_before_the_first_run(calls):
    for options in (dict(baseline="tf32"), dict(seeds=[1, 1]), dict(control="x")):
        with pytest.raises(ValueError, match=r"expected|more than once"):
            compare(model(), data(), ["32-true", "16-mixed"], **SETTINGS, **options)
    assert calls == []
