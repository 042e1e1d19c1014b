"""A `Run`: what it prints and how its history grows."""

import torch

from mpbook.precision import PRECISIONS
from mpbook.training.run import History, Run


def bare_run(**parts) -> Run:
    config = dict(model="MLP", parameters=12345, item="token")
    return Run(PRECISIONS["16-mixed"], config, **parts)


def test_every_number_of_a_printed_run_is_in_its_place():
    run = bare_run(
        losses=[4.0, 0.5], skipped_steps=[5, 9, 11], validation_losses=[(1, 0.25), (2, 0.75)],
        seconds=12.34, items_per_second=9876.5, peak_memory_bytes=3_250_000,
    )  # fmt: skip
    assert repr(run) == (
        "Run(16-mixed, MLP of 12,345 parameters, 2 steps, loss 4.000 to 0.500, validation 0.750, "
        "3 skipped, 12.3 s, 9,876 tokens/s, 3.2 MB)"
    )
    assert run.validation_loss == 0.75 and run.tokens_per_second == 9876.5


def test_a_run_without_a_step_prints_too():
    assert "0 steps, no step, validation nan" in repr(bare_run())


def test_history_goes_to_the_run_a_hundred_steps_at_a_time():
    run = bare_run()
    history = History(run)
    for step in range(250):
        history.add(torch.tensor(step), torch.tensor(-step), step + 0.5, updated=step % 60 > 0)
        assert run.steps == len(run.gradient_norms) == (step + 1) // 100 * 100
    history.flush()
    history.flush()
    assert run.losses == list(range(250))
    assert run.gradient_norms == [-step for step in range(250)]
    assert run.loss_scales == [step + 0.5 for step in range(250)]
    assert run.skipped_steps == [0, 60, 120, 180, 240]
