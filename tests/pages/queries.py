"""What people type into the search, and the section that answers: its target, or its heading's id.

Error messages are pasted whole, in part, or with shapes of one's own; symptoms come in the words of
threads, names from other libraries, numbers, and a few typing errors. A section keeps its target
when it moves to another page. Where two sections answer equally well, either may be found.
"""

QUERIES: dict[str, set[str]] = {
    # Messages of GradScaler and its neighbours.
    "AssertionError: No inf checks were recorded for this optimizer.": {
        "no-inf-checks-were-recorded-for-this-optimizer",
    },
    "No inf checks were recorded prior to update": {"no-inf-checks-were-recorded-prior-to-update"},
    "ValueError: Attempting to unscale FP16 gradients.": {"ls-fp16-gradients"},
    "unscale_() has already been called on this optimizer since the last update().": {
        "unscale-has-already-been-called-on-this-optimizer-since-the-last-update",
    },
    "RuntimeError: unscale_() is being called after step().": {
        "unscale-is-being-called-after-step",
    },
    "step() has already been called since the last update()": {
        "unscale-is-being-called-after-step",
    },
    "Detected call of `lr_scheduler.step()` before `optimizer.step()`": {
        "detected-call-of-lr-scheduler-step-before-optimizer-step",
    },
    "Current loss scale already at minimum - cannot decrease scale anymore. Exiting run.": {
        "ls-falling",
    },
    "loss scale keeps halving until it is 0": {"ls-falling"},
    "Closure use is not currently supported": {
        "closure-use-is-not-currently-supported-if-gradscaler-is-enabled",
    },
    "65536 growth_interval 2000": {"ls-numbers"},
    "two optimizers one gradscaler GAN": {"several-losses-several-optimizers"},
    "gradient penalty with GradScaler": {
        "gradient-penalty-the-gradient-that-is-part-of-the-loss",
    },
    "resume training scaler.state_dict()": {"what-happens-if-i-do-not-save-the-scaler"},
    "gradscaler with bf16, needed?": {
        "do-i-leave-the-gradscaler-in",
        "does-a-gradscaler-do-harm-with-bfloat16",
    },
    "no_sync accumulate grads update every micro batch scaler": {
        "gradient-accumulation-which-calls-belong-into-the-inner-loop",
    },
    # Autocast, and the names that other libraries give it.
    "RuntimeError: expected scalar type Half but found Float": {
        "expected-scalar-type-half-but-found-float-mat1-and-mat2-must-have-the-same-dtype",
    },
    "mat1 and mat2 must have the same dtype, but got Float and BFloat16": {
        "expected-scalar-type-half-but-found-float-mat1-and-mat2-must-have-the-same-dtype",
        "why-mat1-and-mat2-must-have-the-same-dtype",
    },
    "binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast": {
        "bceloss-is-unsafe-to-autocast",
    },
    "FutureWarning: `torch.cuda.amp.autocast(args...)` is deprecated": {
        "torch-cuda-amp-autocast-is-deprecated",
    },
    "autocast no_grad memory leak evaluation": {"memory-grows-during-validation"},
    "custom_fwd custom_bwd autograd.Function amp": {"a-custom-autograd-function"},
    "fully_shard MixedPrecisionPolicy param_dtype": {
        "and-with-torch-compile-ddp-fsdp-flashattention",
    },
    "all-reduce gradients in fp16 DDP": {
        "several-gpus",
        "and-with-torch-compile-ddp-fsdp-flashattention",
    },
    "model.bfloat16() together with autocast": {"may-i-call-model-bfloat16-as-well"},
    "BatchNorm running_mean half": {"batchnorm-do-my-running-statistics-become-16-bit"},
    "cross_entropy under AMP float32 or half?": {"cross-entropy"},
    "torch_dtype=torch.bfloat16 or bf16=True": {"torch-dtype"},
    "TrainingArguments(fp16=True)": {"torch-dtype"},
    # Formats and sums.
    "65504": {"why-is-65520-infinity-in-fp16"},
    "448 or nan": {"fp8-what-does-e4m3fn-mean", "float8-e4m3fn", "version-e4m3fn-overflow"},
    "fp16 underflow 6e-5": {"does-fp16-underflow-below-6e-5"},
    "value cannot be converted to type at::Half without overflow": {
        "why-does-a-mask-of-1e9-fail-in-fp16",
        "a-mask-of-1e9-in-float16",
    },
    "TypeError: Got unsupported ScalarType BFloat16": {
        "typeerror-got-unsupported-scalartype-bfloat16",
        "why-can-t-i-call-numpy-on-a-bf16-tensor",
    },
    "Adam eps 1e-8 half": {"which-eps-survives-fp16", "mw-adam-nan"},
    "bf16 stuck at 256": {"why-does-my-bf16-counter-stop-at-256"},
    "clip_grad_norm_ zero gradients fp16": {"why-does-clipping-set-my-fp16-gradients-to-zero"},
    "x.half().mean() is inf": {"why-is-the-mean-of-an-fp16-tensor-infinite"},
    "do tensor cores accumulate in fp32": {
        "does-a-16-bit-matmul-accumulate-in-float32",
        "does-a-bfloat16-product-add-up-in-float32",
        "how-wide-is-a-tensor-core-s-accumulator",
    },
    # Weights that stand still, and what else 16-bit weights do.
    "model.half() Adam nan after first step": {"mw-adam-nan"},
    "fine-tuning in pure bf16 weights do not change": {
        "mw-fail",
        "does-that-happen-to-a-transformer-too",
        "what-about-pure-bfloat16-model-to-torch-bfloat16",
    },
    "EMA weights never move bf16": {
        "why-does-my-ema-of-the-weights-stand-still",
        "why-does-my-ema-never-change",
    },
    "weight decay does nothing": {"does-weight-decay-work-in-bf16"},
    "lora adapter fp32 or bf16": {"does-lora-need-it"},
    # bfloat16.
    "torch.cuda.is_bf16_supported T4": {"is-bf16-supported-says-true-on-my-t4"},
    "rotary embedding position ids bf16 long context": {
        "positions-and-rope-is-an-arange-in-bfloat16-so-bad",
    },
    "RL logprobs mismatch vllm trainer": {
        "training-and-sampling-disagree-where-float16-wins",
    },
    "bf16 model gives NaN in fp16": {
        "why-does-a-bf16-model-give-nan-in-fp16",
        "my-bfloat16-checkpoint-gives-nan-in-float16",
    },
    "allow_tf32 set_float32_matmul_precision": {"what-is-tf32-and-is-it-on", "what-is-tf32"},
    "loss is nan after some epochs": {"nan-after-some-epochs"},
    # Memory and speed.
    "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB": {
        "out-of-memory-which-line-of-my-code-holds-it",
        "why-does-it-run-out-of-memory-at-the-second-step",
    },
    "OOM at second iteration": {"why-does-it-run-out-of-memory-at-the-second-step"},
    "AMP uses more VRAM than fp32": {"why-does-amp-use-more-memory-than-float32"},
    "will it fit on 24GB": {"will-it-fit-on-mine"},
    "load_in_8bit adam 8-bit optimizer": {"lower-the-plain-what-frees-bytes-a-parameter"},
    "nvidia-smi shows more than torch.cuda.memory_allocated": {
        "why-does-nvidia-smi-show-more-than-memory-allocated",
    },
    "mixed precision no speedup low gpu utilization": {
        "no-speed-up-and-gpu-utilisation-is-low",
    },
    "autocast cpu extremely slow": {"autocast-on-a-cpu-is-a-hundred-times-slower"},
    "fp8 not faster than bf16": {"fp8-should-be-twice-as-fast-as-bf16-and-is-not"},
    # Typing errors.
    "GradScalr infinty chekcs recorded": {
        "no-inf-checks-were-recorded-for-this-optimizer",
        "no-inf-checks-were-recorded-prior-to-update",
    },
}
