"""Programs for several ranks, in plain torch: on a CPU through gloo, on GPUs through NCCL.

Each is a script for ``python -m torch.distributed.run --nproc-per-node=2 -m`` and its name, and is
read by `mpbook.many_gpus.launch`.
"""
