"""Lightning: what each word for ``precision`` does to dtypes and to the checkpoint."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mpbook.evidence.frameworks.base import Facts, Question, dtypes, size, tensors_in

WORDS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")


def _module(seen: Facts) -> Any:
    """A module of two layers that notes what it holds and computes in."""
    import lightning

    class Net(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 8))

        def training_step(self, batch: Any, _index: int) -> torch.Tensor:
            hidden = self.net[0](batch[0])
            seen["computes in"] = dtypes([hidden])
            return torch.nn.functional.mse_loss(self.net[1](hidden), batch[1])

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            seen["parameters"] = dtypes(self.parameters())
            seen["gradients"] = dtypes(p.grad for p in self.parameters() if p.grad is not None)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    return Net()


def trained(word: str, folder: Path) -> Facts:
    """Two steps with a word for ``precision``; what the parts and the checkpoint hold.

    "16-mixed" gets torch's GradScaler for a CPU: Lightning itself takes "bf16-mixed" there.
    """
    import lightning
    from lightning.pytorch.plugins import MixedPrecision

    seen = Facts()
    scaler = torch.amp.GradScaler("cpu")
    choice: Facts = (
        {"plugins": [MixedPrecision("16-mixed", device="cpu", scaler=scaler)]}
        if word == "16-mixed" else {"precision": word}
    )  # fmt: skip
    module = _module(seen)
    runner = lightning.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **choice,
    )  # fmt: skip
    data = torch.utils.data.TensorDataset(torch.ones(16, 32), torch.ones(16, 8))
    runner.fit(module, torch.utils.data.DataLoader(data, batch_size=8))
    runner.save_checkpoint(folder / "last.ckpt")
    return {**seen, **_checkpoint(folder / "last.ckpt")}


def _checkpoint(path: Path) -> Facts:
    kept = torch.load(path, weights_only=False)
    weights, state = tensors_in(kept["state_dict"]), tensors_in(kept["optimizer_states"])
    scaler = {k: float(v) for k, v in kept.get("MixedPrecision", {}).items()}
    count = sum(tensor.numel() for tensor in weights)
    return {"checkpoint": dtypes(weights), "state": dtypes(state), "count": count,
            "checkpoint bytes": size(weights), "state bytes": size(state),
            "scaler": scaler}  # fmt: skip


def sixteen_mixed_on_a_cpu(folder: Path) -> Facts:
    """What Lightning makes of "16-mixed" without a GPU, and what it says."""
    import lightning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner = lightning.Trainer(accelerator="cpu", precision="16-mixed", logger=False,
                                   default_root_dir=folder)  # fmt: skip
    said = [str(w.message) for w in caught if "16-mixed" in str(w.message)]
    return {"precision": str(runner.precision), "says": said[0] if said else ""}


def old_words(_folder: Path) -> Facts:
    """What became of the words of Lightning 1."""
    from lightning.fabric.connector import _convert_precision_to_unified_args as converted

    return {str(word): str(converted(word)) for word in (16, "16", "bf16", 32, 64)}


QUESTIONS = [
    *(Question("lightning", "training", {"precision": w}, partial(trained, w)) for w in WORDS),
    Question("lightning", "16-mixed on a CPU", {}, sixteen_mixed_on_a_cpu),
    Question("lightning", "old words", {}, old_words),
]
