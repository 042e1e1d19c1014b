"""What people type into the search, and the section that answers: its target, or its heading's id.

Error messages are pasted whole, in part, or with shapes of one's own; symptoms come in the words of
threads, names from other libraries, numbers, and a few typing errors. A section keeps its target
when it moves to another page. Where two sections answer equally well, either may be found.
"""

QUERIES: dict[str, set[str]] = {
    # Messages of GradScaler and its neighbours.
    "AssertionError: No inf checks were recorded for this optimizer.": {
        "ls-no-checks",
    },
    "No inf checks were recorded prior to update": {"ls-no-checks-update"},
    "ValueError: Attempting to unscale FP16 gradients.": {"ls-fp16-gradients", "fw-fp16-model"},
    "unscale_() has already been called on this optimizer since the last update().": {
        "ls-unscale-twice",
    },
    "RuntimeError: unscale_() is being called after step().": {
        "ls-order",
    },
    "step() has already been called since the last update()": {
        "ls-order",
    },
    "Detected call of `lr_scheduler.step()` before `optimizer.step()`": {
        "ls-scheduler",
    },
    "Current loss scale already at minimum - cannot decrease scale anymore. Exiting run.": {
        "ls-falling",
    },
    "loss scale keeps halving until it is 0": {"ls-falling"},
    "Closure use is not currently supported": {
        "ls-closure",
    },
    "65536 growth_interval 2000": {"ls-numbers"},
    "two optimizers one gradscaler GAN": {"ls-several"},
    "gradient penalty with GradScaler": {
        "ls-penalty",
    },
    "resume training scaler.state_dict()": {"ls-save"},
    "gradscaler with bf16, needed?": {
        "ls-bf16",
    },
    "no_sync accumulate grads update every micro batch scaler": {
        "ls-accumulation",
    },
    # Autocast, and the names that other libraries give it.
    "RuntimeError: expected scalar type Half but found Float": {
        "autocast-half-but-found-float",
    },
    "mat1 and mat2 must have the same dtype, but got Float and BFloat16": {
        "autocast-half-but-found-float",
        "formats-mat1-mat2",
    },
    "binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast": {
        "autocast-bceloss",
    },
    "FutureWarning: `torch.cuda.amp.autocast(args...)` is deprecated": {
        "torch-cuda-amp",
    },
    "autocast no_grad memory leak evaluation": {"autocast-validation-memory"},
    "custom_fwd custom_bwd autograd.Function amp": {"autocast-custom-function"},
    "fully_shard MixedPrecisionPolicy param_dtype": {"autocast-fsdp2"},
    "all-reduce gradients in fp16 DDP": {
        "ls-gpus",
        "autocast-ddp",
    },
    "model.bfloat16() together with autocast": {"autocast-bfloat16-model"},
    "BatchNorm running_mean half": {"autocast-batch-norm"},
    "cross_entropy under AMP float32 or half?": {"cuda-cross-entropy"},
    "torch_dtype=torch.bfloat16 or bf16=True": {"fw-two-by-two"},
    "TrainingArguments(fp16=True)": {"fw-two-by-two", "mw-loaded"},
    # Formats and sums.
    "65504": {"formats-65520"},
    "448 or nan": {"formats-overflow", "formats-fp8", "version-e4m3fn-overflow", "fp8-cast-448"},
    "fp16 underflow 6e-5": {"formats-subnormals"},
    "value cannot be converted to type at::Half without overflow": {
        "mask-value",
    },
    "TypeError: Got unsupported ScalarType BFloat16": {
        "bf16-numpy",
        "formats-numpy",
    },
    "Adam eps 1e-8 half": {"formats-eps", "mw-adam-nan"},
    "bf16 stuck at 256": {"sums-counter"},
    "clip_grad_norm_ zero gradients fp16": {"sums-clip"},
    "x.half().mean() is inf": {"sums-fp16-mean"},
    "do tensor cores accumulate in fp32": {
        "sums-matmul",
        "bf16-product",
        "sums-tensor-core",
    },
    # Weights that stand still, and what else 16-bit weights do.
    "model.half() Adam nan after first step": {"mw-adam-nan"},
    "fine-tuning in pure bf16 weights do not change": {
        "mw-fail",
        "mw-loaded",
        "bf16-pure",
    },
    "EMA weights never move bf16": {
        "mw-ema",
        "sums-ema",
    },
    "weight decay does nothing": {"mw-decay"},
    "lora adapter fp32 or bf16": {"mw-lora"},
    # bfloat16.
    "torch.cuda.is_bf16_supported T4": {"bf16-supported"},
    "rotary embedding position ids bf16 long context": {
        "bf16-rope",
    },
    "RL logprobs mismatch vllm trainer": {
        "bf16-rl",
    },
    "bf16 model gives NaN in fp16": {
        "formats-bf16-nan-in-fp16",
        "bf16-to-fp16",
    },
    "allow_tf32 set_float32_matmul_precision": {"bf16-tf32", "formats-tf32"},
    "loss is nan after some epochs": {"nan-path", "ls-nan"},
    # Memory and speed.
    "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB": {
        "memory-recipe",
        "memory-snapshot",
    },
    "OOM at second iteration": {"memory-second-step"},
    "AMP uses more VRAM than fp32": {"memory-amp-adds"},
    "will it fit on 24GB": {"memory-planner", "memory-24-gb"},
    "8-bit adam optimizer memory": {"memory-parameters"},
    "unexpected keyword argument 'load_in_8bit'": {"fw-load-in-8bit"},
    "nvidia-smi shows more than torch.cuda.memory_allocated": {
        "memory-nvidia-smi",
    },
    "mixed precision no speedup low gpu utilization": {
        "sp-loader",
        "sp-no-faster",
    },
    "autocast cpu extremely slow": {"sp-cpu"},
    "fp8 not faster than bf16": {"sp-fp8"},
    "RTX 3090 mixed precision speedup": {"published-by-card"},
    "how much faster is amp on a T4": {"published-by-card"},
    "try tf32 first": {"published-by-card", "bf16-tf32"},
    # A model of one's own.
    "does my custom model work in fp16": {"own-recipe"},
    "which layer overflows in fp16": {"own-recipe", "own-rescue", "nan-module"},
    "keep one layer in fp32 with autocast": {"own-rescue", "autocast-island"},
    "cuFFT only supports dimensions whose sizes are powers of two when computing in half "
    "precision, but got a signal size of[192]": {"own-fft"},
    "MoE router topk bf16 different experts": {"own-router"},
    "SDXL VAE black image fp16": {"own-black-images"},
    "bf16=True but model.parameters() dtype is float32": {"own-which-dtype", "fw-two-by-two"},
    "detect_anomaly nan with GradScaler": {"own-anomaly", "ls-derivative"},
    "fp16 training diverges after 10k steps activations grow": {"own-later", "ls-nan"},
    "flash_attention_2 loss explodes sdpa works": {"own-flash"},
    "DebugUnderflowOverflow": {"own-tools"},
    "lint training script mixed precision": {"own-lint"},
    # Eight and four bits.
    "fp8 slower than bf16": {"sp-fp8", "fp8-cost", "fp8-eight-gpus"},
    "NaN with rowwise": {"fp8-zero-row"},
    "fp8 LoRA nan": {"fp8-zero-row"},
    "Rowwise scaling is not currently supported on your device": {"fp8-rowwise-gpus"},
    "rowwise fp8 on an RTX 4090": {"fp8-rowwise-gpus"},
    "fp8 uses more memory than bf16": {"fp8-more-memory", "fp8-memory", "fp8-cost"},
    "delayed scaling or current scaling": {"fp8-delayed"},
    "convert_to_float8_training": {"fp8-recipe", "sp-fp8"},
    "nvfp4 stochastic rounding hadamard": {"fp4-tricks", "fp8-hadamard-worse", "fp8-who"},
    "mxfp8 scale rceil floor": {"fp8-scale-modes", "fp8-blocks"},
    "Expected trailing dimension of mat1 to be divisible by 16": {"fp8-multiple"},
    "hopper fp8 14 bits accumulation": {"fp8-14-bits"},
    "RTX 5090 nvfp4 zero gradients": {"fp8-zero-gradients"},
    # Typing errors.
    "GradScalr infinty chekcs recorded": {
        "ls-no-checks",
        "ls-no-checks-update",
    },
    # One word.
    "fp16": {"term-float16", "same-name-float16"},
    "AMP": {"autocast", "autocast-recipe"},
    "OOM": {"memory-recipe", "memory-second-step"},
    "24GB": {"memory-24-gb"},
    "448": {"formats-overflow"},
    "FSDP2": {"autocast-fsdp2", "mg-recipe", "mg-traps"},
    # Many GPUs.
    "FSDP needs larger learning rate than DeepSpeed": {"mg-loaded"},
    "AssertionError: FSDP does not support deepcopy": {"mg-tools"},
    "got mixed torch.Tensor and DTensor": {"mg-tools"},
    "AssertionError: FSDP reduce-scatter expects uniform gradient dtype but got": {"mg-uniform"},
    "BF16 all reduce communication hook required CUDA 11+ and NCCL 2.10+": {"mg-compress"},
    "ShardedGradScaler FSDP2": {"mg-scaler", "ls-gpus"},
    "fp16_compress_hook inf gradients": {"mg-compress"},
    "reduce_dtype bf16 or fp32": {"mg-reduce", "autocast-fsdp2"},
    "tensor parallel norm weight all-reduce bf16": {"mg-tensor-parallel"},
    "cast_forward_inputs position_ids": {"mg-positions"},
    "same seed different loss on 4 GPUs": {"mg-order"},
    "Connection closed by peer": {"mg-closed"},
    "grad_accum_dtype DeepSpeed bf16": {"mg-accumulate"},
    "all-reduce error number of GPUs bf16 ring": {"mg-sum", "mg-reduce"},
    "RL": {"bf16-rl"},
    "bf16=True": {"fw-two-by-two"},
    "torch_dtype": {"fw-two-by-two"},
    "load_in_8bit": {"fw-load-in-8bit"},
    "does autocast halve memory? I see no change": {"memory-bytes"},
    "explain mixed precision in an interview": {"interview-questions-explain-mixed-precision"},
}
