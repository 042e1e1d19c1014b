"""What a diagnosis did not see.  Every report has it, and it is never empty."""

from __future__ import annotations

from torch import nn

from mpbook.diagnosis.failures import in_16_bit
from mpbook.diagnosis.places import MODEL, Place
from mpbook.diagnosis.stepping import Run
from mpbook.diagnosis.workload import Workload
from mpbook.distributed import rank_and_ranks


def unseen(workload: Workload, run: Run) -> list[tuple[str, str]]:
    """Pairs of what was not seen, and where."""
    found = [("what later steps do: a few were run, on these batches", "")]
    found.append(("inside a kernel: a fused one (attention, cuDNN's LSTM) is one operator", ""))
    rank, ranks = rank_and_ranks()
    if ranks > 1:
        what = "other ranks' batches, and the mean of all ranks' gradients: this is"
        found.append((f"{what} rank {rank} of {ranks}", ""))
    for name in workload.compiled:
        what = "compiled code: it was run as written; compiled kernels keep float32 between the "
        found.append((f"{what}operators they fuse", name))
    narrow = _first_in_16_bits(run)
    if narrow is not None:
        what = "float32 alone: the model computes in 16 bits itself, in the float32 run too, and "
        found.append((f"{what}errors are against that", str(narrow)))
    for name in _never_called(workload.model, run):
        found.append(("a module that these batches never called", name))
    for what, count in sorted(run.recorder.unseen.items()):
        found.append((f"inside {what}" if "custom" in what else what, f"{count} times"))
    if any(p.is_complex() for p in workload.model.parameters()):
        what = "complex parameters: GradScaler refuses their gradients ("
        found.append((f'{what}"not implemented for ComplexFloat"): scale by hand', ""))
    if workload.optimizer is None:
        found.append(("updates and states: no optimizer was passed", ""))
    for name in sorted(workload.outside.changed):
        what = (
            "what it does: a step or a loss knows it by itself, so it was put back and is no copy's"
        )
        found.append((what, name))
    if not run.gradients:
        found.append(("gradients: no weight had one in its .grad, so none was compared", ""))
    if workload.target == "cuda" and workload.device.type == "cpu":
        found.append(("a GPU: CUDA's autocast was imitated, its kernels were a CPU's", ""))
    return found


def _first_in_16_bits(run: Run) -> Place | None:
    """Where a run in float32 computes in 16 bits: by a cast or an autocast of the model's own."""
    casts = ("_to_copy", "copy_")
    found = (s for s in in_16_bit(run, phase="forward") if s.operator not in casts)
    return next((s.key.place for s in found), None)


def _never_called(model: nn.Module, run: Run) -> list[str]:
    """Innermost modules with weights that nobody called or used, at most eight and a count."""
    called = run.recorder.called
    used = {id(p) for name, p in model.named_parameters() if name in run.gradients}
    names = [
        name
        for name, module in model.named_modules()
        if (name or MODEL) not in called
        and any(id(p) not in used for p in module.parameters(recurse=False))
    ]
    shown = names[:8]
    return shown if len(names) <= 8 else [*shown, f"and {len(names) - 8} more"]
