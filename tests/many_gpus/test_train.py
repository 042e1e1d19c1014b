"""`train` on real ranks, under DDP and FSDP2: the losses of one process, and checkpoints.

One start on two ranks makes all runs, one after the other; with ``MPBOOK_RANKS=4`` four make them
too.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from mpbook.many_gpus.launch import launch
from mpbook.many_gpus.programs.train_digits import train_digits

# ruff: noqa: F821  a program's imports come from `mpbook.many_gpus.program_text.PRELUDE`

BOUND = {"32": 1000 * 2.0**-24, "16": 32 * 2.0**-11, "bf": 4 * 2.0**-8, "fl": 2.0**-4}
"""Of the relative difference of a loss from one process's, over the steps below.

The gradients of parts of a batch are added up in another order, so float32 weights differ by some
roundoffs after a step, and training lets that grow.  In 16 bits a weight near the middle of two
numbers is then cast to the other one: a roundoff, in a few weights.  Measured on two and four
ranks, in roundoffs: up to 4 in float32, 2 in float16, a half in bfloat16, a twentieth in e4m3.  The
keys begin a precision's name.
"""
OPTIONS: dict[str, Any] = dict(batch_size=48, learning_rate=2e-3, clip_norm=0.5, steps=8)
SCALED: dict[str, Any] = dict(precision="16-mixed", loss_scale_growth_interval=6)
MASTER = dict(weight_update="master_weights")
RUNS: dict[str, dict[str, Any]] = {
    "float32": dict(precision="32-true"),
    "in micro-batches": dict(precision="32-true", accumulation_steps=3, batch_size=16),
    "bfloat16": dict(precision="bf16-mixed"),
    "float16": SCALED,
    "master weights": dict(precision="bf16-true", changes=MASTER, accumulation_steps=2),
    "every step skipped": dict(precision="16-mixed", changes=dict(loss_scale=2.0**40)),
    "lost updates": dict(precision="bf16-true", count_lost_updates_every=3, learning_rate=3e-4),
}
OF_BOTH = {(engine, name): run for name, run in RUNS.items() for engine in ("ddp", "fsdp2")}
OF_ONE = {
    ("fsdp2 autocast", "bfloat16"): RUNS["bfloat16"],
    ("ddp", "delayed scales"): dict(precision="float8_delayed-mixed", validate_every=3),
    ("ddp", "stochastic rounding"): dict(
        precision="bf16-true", changes=dict(weight_update="stochastic_rounding")
    ),
}
ALL = {**OF_BOTH, **OF_ONE}
KEPT = {
    "float16": SCALED,
    "master weights": RUNS["master weights"],
    "dropout": dict(precision="32-true", dropout=0.5),
}
"""What is saved after 5 of 8 steps, and goes on."""


def on_every_rank(cases, saving, resuming):
    """The runs, and what only ranks can show; each is answered by its name."""
    from mpbook.data import Examples
    from mpbook.loss_scaling import DynamicLossScaler, nonfinite_gradients
    from mpbook.many_gpus.programs.train_digits import parallel_of, train_digits
    from mpbook.precision import PRECISIONS
    from mpbook.training import cross_entropy, train

    rank, ranks = dist.get_rank(), dist.get_world_size()

    def trained(runs):
        return {name: train_digits(**run) for name, run in runs.items()}

    def message(**options):
        try:
            train_digits(engine="ddp", steps=2, **options)
        except ValueError as error:
            return str(error)

    def losses_of_parts(dropout):
        """Of this rank alone, where every example is the same and each rank made another net."""
        seen = []

        def loss(outputs, targets):
            seen.append(cross_entropy(outputs, targets).item())
            return cross_entropy(outputs, targets)

        torch.manual_seed(rank)
        model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(dropout), nn.Linear(64, 2))
        data = Examples(torch.ones(8, 4), torch.zeros(8, dtype=torch.int64))
        sharded = parallel_of("fsdp2", PRECISIONS["32-true"])
        options = dict(precision="32-true", batch_size=4 * ranks, steps=3, progress=False)
        run = train(model, data, parallel=sharded, loss=loss, device="cpu", **options)
        return [seen, run.losses]

    def steps_until_a_nan_of_the_last_rank():
        def loss(outputs, targets):
            factor = float("nan") if dist.get_rank() == dist.get_world_size() - 1 else 1.0
            return factor * cross_entropy(outputs, targets)

        data = Examples(torch.ones(8, 4), torch.zeros(8, dtype=torch.int64))
        options = dict(precision="32-true", batch_size=4 * ranks, steps=3, progress=False)
        options |= dict(parallel=DistributedDataParallel, loss=loss, stop_on_nan=True, device="cpu")
        run = train(nn.Linear(4, 2), data, **options)
        return [run.steps, run.stopped_on_nan]

    def infinity_of_the_last_rank():
        mesh = init_device_mesh("cpu", (ranks,))
        model = fully_shard(nn.Linear(8, 8, bias=False), mesh=mesh)
        optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), DynamicLossScaler(1024.0)
        before = model.weight.detach().to_local().clone()
        scaler.scale(model(torch.ones(2, 8)).sum()).backward()
        if rank == ranks - 1:
            model.weight.grad.to_local()[0, 0] = torch.inf
        names = nonfinite_gradients(model)
        stepped = scaler.step(optimizer)
        scaler.update()
        moved = not torch.equal(before, model.weight.detach().to_local())
        return [names, stepped, scaler.loss_scale, moved]

    return {
        "runs": trained(cases),
        "saved": trained(saving),
        "resumed": trained(resuming),
        "infinity": infinity_of_the_last_rank(),
        "nan": steps_until_a_nan_of_the_last_rank(),
        "another batch": message(batch_size=64 + rank * ranks),
        "no such parts": message(batch_size=65),
        "parts": losses_of_parts(0.0),
        "parts with dropout": losses_of_parts(0.5),
    }


def key(engine: str, name: str) -> str:
    return f"{engine}, {name}"


def checkpoint(folder: Path, engine: str, name: str, ranks: int) -> str:
    return str(folder / f"{name} {engine} {ranks}")


@functools.cache
def everything(folder: Path, ranks: int, patience_s: float) -> list[dict[str, Any]]:
    """What each rank answers; runs saved by two ranks go on with as many as there are here."""
    if ranks != 2:
        everything(folder, 2, patience_s)
    saving, resuming = {}, {}
    for name, run in KEPT.items():
        for engine in ("ddp", "fsdp2"):
            one = {**OPTIONS, **run, "engine": engine}
            path = checkpoint(folder, engine, name, ranks)
            saving[key(engine, name)] = {**one, "steps": 5, "save_to": path, "save_every": 2}
            saving[key(engine, f"{name}, whole")] = one
            for saved_by in ("ddp", "fsdp2"):
                path = checkpoint(folder, saved_by, name, 2)
                resuming[key(engine, f"{name} of {saved_by}")] = {**one, "resume_from": path}
    cases = {key(*case): {**OPTIONS, **run, "engine": case[0]} for case, run in ALL.items()}
    options = dict(cases=cases, saving=saving, resuming=resuming)
    return launch(on_every_rank, ranks=ranks, options=options, patience_s=patience_s)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def found(ranks: int, folder: Path, patience_s: float) -> list[dict[str, Any]]:
    """What each rank answered."""
    return everything(folder, ranks, patience_s)


@functools.cache
def alone(name: str) -> dict[str, Any]:
    """The same run in one process."""
    run = {name: run for (_, name), run in ALL.items()}[name]
    return train_digits(**{**OPTIONS, **run, "engine": "alone"})


def bound(name: str) -> float:
    run = {**KEPT, **{name: run for (_, name), run in ALL.items()}}[name]
    return BOUND[run["precision"][:2]]


@pytest.mark.parametrize("case", ALL, ids=lambda case: key(*case))
def test_ranks_have_the_losses_and_norms_of_one_process(found: Any, case: tuple[str, str]) -> None:
    one, name = alone(case[1]), case[1]
    for rank in found:
        run = rank["runs"][key(*case)]
        assert run["losses"] == pytest.approx(one["losses"], rel=bound(name))
        norms = pytest.approx(one["gradient_norms"], rel=8 * bound(name), nan_ok=True)
        assert run["gradient_norms"] == norms
        assert [step for step, _ in run["validation_losses"]] == [
            step for step, _ in one["validation_losses"]
        ]
        for ours, theirs in zip(run["validation_losses"], one["validation_losses"], strict=True):
            assert ours[1] == pytest.approx(theirs[1], rel=bound(name))
        assert run["loss_scales"] == one["loss_scales"]
        assert run["skipped_steps"] == one["skipped_steps"]


@pytest.mark.parametrize("case", ALL, ids=lambda case: key(*case))
def test_all_ranks_report_the_same(found: Any, case: tuple[str, str]) -> None:
    first, *others = (str({**rank["runs"][key(*case)], "bytes": None}) for rank in found)
    assert set(others) == {first}  # as text: NaN is not itself


@pytest.mark.parametrize("name", RUNS)
def test_fsdp2_shares_what_ddp_repeats(found: Any, name: str) -> None:
    for part in ("parameters", "master_copies", "gradients"):
        whole = [rank["runs"][key("ddp", name)]["bytes"][part] for rank in found]
        shared = [rank["runs"][key("fsdp2", name)]["bytes"][part] for rank in found]
        assert whole == [alone(name)["bytes"][part]] * len(found)
        assert whole[0] <= sum(shared) <= 1.02 * whole[0]  # ten classes do not divide by four


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_lost_updates_are_counted_over_all_ranks(found: Any, engine: str) -> None:
    one = alone("lost updates")["updates_lost"]
    for rank in found:
        run = rank["runs"][key(engine, "lost updates")]
        assert [step for step, _ in run["updates_lost"]] == [step for step, _ in one] == [0, 3, 6]
        ours, theirs = ([share for _, share in lost] for lost in (run["updates_lost"], one))
        assert ours == pytest.approx(theirs, abs=0.02) and min(theirs) > 0.1


def test_an_infinity_in_one_rank_s_part_makes_all_skip_and_back_off(found: Any) -> None:
    for rank in found:
        assert rank["infinity"] == [["weight"], False, 512.0, False]


def test_a_loss_that_is_nan_on_one_rank_ends_the_run_on_all(found: Any) -> None:
    assert [rank["nan"] for rank in found] == [[1, True]] * len(found)


def test_ranks_that_are_asked_for_different_runs_say_so(found: Any) -> None:
    said = f"another settings than rank 0: batch_size was 64, is {64 + len(found)}"
    for rank in found:
        assert f"rank 1: was asked for {said}" in rank["another batch"]


def test_a_batch_that_the_ranks_do_not_divide_is_refused(found: Any) -> None:
    said = f"65 examples go through the model at once, which {len(found)} ranks do not divide"
    for rank in found:
        assert f"batch_size: {said}" in rank["no such parts"]


def test_every_rank_begins_with_the_weights_of_rank_0(found: Any) -> None:
    """Each made another net, and all examples are the same: so are their losses."""
    first = found[0]["parts"]
    for rank in found:
        assert rank["parts"] == first
        assert rank["parts"][0] == pytest.approx(rank["parts"][1], rel=BOUND["32"])


def test_each_rank_has_a_dropout_of_its_own_and_all_report_the_mean(found: Any) -> None:
    parts, means = zip(*(rank["parts with dropout"] for rank in found), strict=True)
    for step, losses in enumerate(zip(*parts, strict=True)):
        assert len(set(losses)) == len(found)
        assert all(mean[step] == pytest.approx(sum(losses) / len(losses)) for mean in means)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", KEPT)
def test_a_run_on_as_many_ranks_goes_on_bit_for_bit(found: Any, engine: str, name: str) -> None:
    if len(found) != 2:
        pytest.skip("the checkpoints are of two ranks")
    for rank in found:
        whole = rank["saved"][key(engine, f"{name}, whole")]
        resumed = rank["resumed"][key(engine, f"{name} of {engine}")]
        for part in ("losses", "gradient_norms", "loss_scales", "skipped_steps"):
            assert resumed[part] == whole[part]
        assert resumed["validation_losses"][1:] == whole["validation_losses"]


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
@pytest.mark.parametrize("saved_by", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", ["float16", "master weights"])
def test_a_run_goes_on_under_any_engine_on_any_number_of_ranks(
    found: Any, engine: str, saved_by: str, name: str
) -> None:
    for rank in found:
        whole = rank["saved"][key(engine, f"{name}, whole")]
        resumed = rank["resumed"][key(engine, f"{name} of {saved_by}")]
        assert resumed["losses"] == pytest.approx(whole["losses"], rel=bound(name))
        assert resumed["loss_scales"] == whole["loss_scales"]


@pytest.mark.parametrize("saved_by", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", KEPT)
def test_one_process_goes_on_from_what_ranks_saved(
    found: Any, folder: Path, saved_by: str, name: str
) -> None:
    path = checkpoint(folder, saved_by, name, len(found))
    resumed = train_digits(**{**OPTIONS, **KEPT[name], "engine": "alone", "resume_from": path})
    saved = found[0]["saved"][key(saved_by, name)]
    whole = found[0]["saved"][key(saved_by, f"{name}, whole")]
    assert resumed["losses"][:5] == saved["losses"] and len(resumed["losses"]) == 8
    assert resumed["loss_scales"] == whole["loss_scales"]
    if name != "dropout":  # which draws anew
        assert resumed["losses"] == pytest.approx(whole["losses"], rel=bound(name))


def test_a_checkpoint_holds_only_the_last_tensors(found: Any, folder: Path) -> None:
    for name in KEPT:
        path = Path(checkpoint(folder, "fsdp2", name, len(found)))
        assert len(list(path.glob("tensors-*"))) == 1 and (path / "run.pt").is_file()
