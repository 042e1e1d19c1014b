"""Transformers' Trainer, Accelerate and PEFT: what their switches do to dtypes and files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from mpbook.evidence.frameworks.base import (
    Facts,
    Question,
    dtypes,
    message_of,
    size,
    tensors_in,
)
from mpbook.evidence.frameworks.models import loaded_llama, saved_llama, token_data

STEPS, LEARNING_RATE = 20, 1e-5


def trainer(model: Any, folder: Path, **arguments: Any) -> Any:
    """A quiet Trainer on the CPU, with its defaults for the rest."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    settings = {
        "use_cpu": True, "max_steps": STEPS, "save_steps": STEPS, "report_to": "none",
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "disable_tqdm": True,
        "logging_strategy": "no", "dataloader_pin_memory": False,
    } | arguments  # fmt: skip
    made = TrainingArguments(output_dir=str(folder / "out"), **settings)
    found = Trainer(model=model, args=made, train_dataset=token_data(), eval_dataset=token_data(8))
    found.remove_callback(PrinterCallback)
    return found


def _watched(trainer: Any, seen: Facts) -> None:
    """Note what a layer computes in, and what lies in memory before the last optimizer step."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_optimizer_step(self, *_: Any, model: Any, optimizer: Any, **__: Any) -> None:
            held = {
                "parameters": list(model.parameters()),
                "gradients": [p.grad for p in model.parameters()],
                "state": tensors_in(optimizer.state_dict()["state"]),
            }
            for part, tensors in held.items():
                seen[part] = dtypes(tensors)
                seen[f"{part} bytes"] = size(tensors)

    def computed(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        seen["computes in"] = dtypes([output])

    trainer.model.model.layers[0].mlp.up_proj.register_forward_hook(computed)
    trainer.add_callback(Watch())


def two_by_two(loaded: str, bf16: bool, folder: Path) -> Facts:
    """Train 20 steps; what the parts hold, how large they are, and how many weights moved."""
    model = loaded_llama(saved_llama(folder), dtype=getattr(torch, loaded))
    before = [p.detach().clone() for p in model.parameters()]
    running, seen = trainer(model, folder, bf16=bf16), Facts()
    _watched(running, seen)
    running.train()
    same = sum(int((a == b).sum()) for a, b in zip(before, model.parameters(), strict=True))
    count = sum(p.numel() for p in model.parameters())
    unchanged = round(same / count, 4)
    return {"count": count, **seen, **_files(folder / "out"), "unchanged": unchanged}


def _files(out: Path) -> Facts:
    from safetensors.torch import load_file

    checkpoint = next(out.glob("checkpoint-*"))
    weights = list(load_file(checkpoint / "model.safetensors").values())
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    moments = tensors_in(state["state"])
    return {
        "checkpoint": dtypes(weights),
        "checkpoint bytes": size(weights),
        "optimizer.pt": dtypes(moments),
        "optimizer.pt bytes": size(moments),
        "files": sorted(path.name for path in checkpoint.iterdir()),
    }


def without_dtype(stored: str, folder: Path) -> Facts:
    """What `from_pretrained` gives if no dtype is named, of a checkpoint in this one."""
    model = loaded_llama(saved_llama(folder, getattr(torch, stored)))
    return {"parameters": dtypes(model.parameters())}


def old_word(folder: Path) -> Facts:
    """Whether ``torch_dtype=`` is still understood."""
    saved = saved_llama(folder)
    return {"parameters": dtypes(loaded_llama(saved, torch_dtype=torch.bfloat16).parameters())}


def eight_bits(folder: Path) -> Facts:
    """What ``load_in_8bit=True`` says."""
    saved = saved_llama(folder)
    return {"says": message_of(lambda: loaded_llama(saved, load_in_8bit=True))}


def defaults(folder: Path) -> Facts:
    """What TrainingArguments choose if nothing is said."""
    from transformers import TrainingArguments

    made = TrainingArguments(output_dir=str(folder / "out"), use_cpu=True)
    return {"optim": str(getattr(made.optim, "value", made.optim)), "bf16": made.bf16,
            "fp16": made.fp16, "tf32": made.tf32, "max_grad_norm": made.max_grad_norm}  # fmt: skip


def without_a_gpu(flag: str, folder: Path) -> Facts:
    """What TrainingArguments say to ``bf16=True`` or ``fp16=True`` where there is no GPU."""
    from transformers import TrainingArguments

    out = str(folder / "out")
    return {"says": message_of(lambda: TrainingArguments(output_dir=out, **{flag: True}))}


def full_eval(flag: str, folder: Path) -> Facts:
    """The parameters before and after ``evaluate()``, and those that a training after it has."""
    model = loaded_llama(saved_llama(folder), dtype=torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    running, seen = trainer(model, folder, **{flag: True}, max_steps=2, save_strategy="no"), Facts()
    running.evaluate()
    after = dtypes(model.parameters())
    pairs = list(zip(before, model.parameters(), strict=True))
    rounded = sum(int((a != b.float()).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
    _watched(running, seen)
    running.train()
    return {"parameters": after, "rounded": round(rounded, 4), "trained on": seen["parameters"]}


def saved_smaller(folder: Path) -> Facts:
    """What ``model.to(bfloat16).save_pretrained`` writes, and what is left in memory."""
    from safetensors.torch import load_file

    model = loaded_llama(saved_llama(folder), dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(folder / "small")
    weights = list(load_file(folder / "small" / "model.safetensors").values())
    return {"checkpoint": dtypes(weights), "checkpoint bytes": size(weights),
            "memory": dtypes(model.parameters())}  # fmt: skip


def resumed(loaded: str, folder: Path) -> Facts:
    """Go on from a float32 checkpoint with a model loaded in this dtype."""
    saved = saved_llama(folder)
    trainer(loaded_llama(saved, dtype=torch.float32), folder).train()
    model = loaded_llama(saved, dtype=getattr(torch, loaded))
    running, seen = trainer(model, folder, max_steps=STEPS + 2, save_strategy="no"), Facts()
    _watched(running, seen)
    running.train(resume_from_checkpoint=True)
    return {part: seen[part] for part in ("parameters", "state")}


def on_a_cpu(word: str, folder: Path) -> Facts:
    """What ``Accelerator(mixed_precision=...)`` makes of a layer on a CPU."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    seen = Facts()
    accelerator = Accelerator(mixed_precision=word, cpu=True)
    layer = torch.nn.Linear(4, 4)
    layer.register_forward_hook(lambda _m, _i, output: seen.update(inside=dtypes([output])))
    model = accelerator.prepare(torch.nn.Sequential(layer))
    seen["returned"] = dtypes([model(torch.ones(2, 4))])
    seen["parameters"] = dtypes(model.parameters())
    seen["scaler"] = type(accelerator.scaler).__name__
    AcceleratorState._reset_state(True)
    return seen


def _float16_on_a_cpu() -> Any:
    """An Accelerator for float16 whose scaler, which needs a GPU, is torch's for a CPU."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    accelerator = Accelerator(mixed_precision="fp16", cpu=True)
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return accelerator


def clipping(through: str, _folder: Path) -> Facts:
    """The norm that a clipping function sees of gradients whose norm is 1, under a loss scale."""
    accelerator = _float16_on_a_cpu()
    model = torch.nn.Linear(1, 1, bias=False)
    model, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    accelerator.backward(model(torch.ones(1, 1)).sum())
    clip = accelerator if through == "accelerator" else torch.nn.utils
    return {"norm": float(clip.clip_grad_norm_(model.parameters(), 1.0))}


def float16_training(loaded: str, max_grad_norm: float, folder: Path) -> Facts:
    """``fp16=True`` with a model loaded in this dtype; the scaler is torch's for a CPU."""
    model = loaded_llama(saved_llama(folder), dtype=getattr(torch, loaded))
    running = trainer(model, folder, fp16=True, max_grad_norm=max_grad_norm)
    running.accelerator.native_amp = True
    running.accelerator.scaler = torch.amp.GradScaler("cpu")
    says = message_of(running.train)
    scalers = sorted((folder / "out").glob("checkpoint-*/scaler.pt"))
    state = {k: float(v) for k, v in torch.load(scalers[0]).items()} if scalers else {}
    return {"says": says, "scaler.pt": state}


def adapters(autocast_adapter_dtype: bool, folder: Path) -> Facts:
    """LoRA on a model loaded in float16: the adapters' dtype, and what ``fp16=True`` says."""
    from peft import LoraConfig, get_peft_model

    base = loaded_llama(saved_llama(folder), dtype=torch.float16)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base, config, autocast_adapter_dtype=autocast_adapter_dtype)
    trained = [p for p in model.parameters() if p.requires_grad]
    running = trainer(model, folder, fp16=True, max_steps=2, save_strategy="no")
    running.accelerator.native_amp = True
    running.accelerator.scaler = torch.amp.GradScaler("cpu")
    return {"adapters": dtypes(trained), "says": message_of(running.train)}


def _questions() -> list[Question]:
    both = ("float32", "bfloat16")
    found = [
        Question("transformers", "training", {"loaded": loaded, "bf16": bf16},
                 partial(two_by_two, loaded, bf16))
        for loaded in both for bf16 in (False, True)
    ]  # fmt: skip
    found += [
        Question("transformers", "no dtype named", {"stored": stored},
                 partial(without_dtype, stored))
        for stored in (*both, "float16")
    ]  # fmt: skip
    found += [
        Question("transformers", "torch_dtype=bfloat16", {}, old_word),
        Question("transformers", "load_in_8bit=True", {}, eight_bits),
        Question("transformers", "defaults", {}, defaults),
        Question("transformers", "saved in bfloat16", {}, saved_smaller),
    ]
    found += [
        Question("transformers", "without a GPU", {"flag": flag}, partial(without_a_gpu, flag))
        for flag in ("bf16", "fp16")
    ]
    found += [
        Question("transformers", "full eval", {"flag": flag}, partial(full_eval, flag))
        for flag in ("bf16_full_eval", "fp16_full_eval")
    ]
    found += [Question("transformers", "resumed", {"loaded": d}, partial(resumed, d)) for d in both]
    found += [
        Question("transformers", "fp16=True", {"loaded": loaded, "max_grad_norm": norm},
                 partial(float16_training, loaded, norm))
        for loaded in ("float32", "float16", "bfloat16") for norm in (1.0, 0.0)
    ]  # fmt: skip
    found += [
        Question("peft", "fp16=True", {"autocast_adapter_dtype": flag}, partial(adapters, flag))
        for flag in (True, False)
    ]
    return found + _of_accelerate()


def _of_accelerate() -> list[Question]:
    words = [
        Question("accelerate", "mixed_precision", {"word": word}, partial(on_a_cpu, word))
        for word in ("no", "bf16", "fp16")
    ]
    clips = [
        Question("accelerate", "clip_grad_norm_", {"of": of}, partial(clipping, of))
        for of in ("accelerator", "torch.nn.utils")
    ]
    return words + clips


QUESTIONS = _questions()
