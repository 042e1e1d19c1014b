"""A GPU made of software for the explorer's own WGSL: PyPI's wgpu on Mesa's lavapipe.

Neither is in the lock.  ``pip install wgpu`` and ``apt install mesa-vulkan-drivers`` bring them;
where one is missing, the tests that need it are skipped and say so.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

from mpbook.explorers.modules import STATIC

STORAGE, COPY_SRC, COPY_DST, UNIFORM = 128, 4, 8, 64


def evaluated(module: str, expression: str) -> Any:
    """What an expression comes to in node, where ``m`` is a module of `static/`."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node to read the module's shaders with (apt install nodejs)")
    url = json.dumps((STATIC / f"{module}.mjs").as_uri())
    script = f"const m = await import({url}); console.log(JSON.stringify({expression}));"
    run = subprocess.run(
        [node, "--input-type=module", "-"], input=script, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)


def software_device() -> Any:
    """A device of wgpu with shader-f16, else the test is skipped with the reason."""
    wgpu = pytest.importorskip("wgpu", reason="no wgpu to run WGSL with (pip install wgpu)")
    try:
        adapter = wgpu.gpu.request_adapter_sync(power_preference="high-performance")
    except Exception as error:
        pytest.skip(f"wgpu found no adapter (apt install mesa-vulkan-drivers): {error}")
    if "shader-f16" not in adapter.features:
        pytest.skip(f"{adapter.info['device']} has no shader-f16")
    return adapter.request_device_sync(required_features=["shader-f16"])


class Kernels:
    """Shaders that share buffers, each with its grid, to dispatch one after another."""

    def __init__(self, device: Any, buffers: list[Any], types: list[str]) -> None:
        self._device = device
        entries = [
            {"binding": i, "visibility": 4, "buffer": {"type": kind}}
            for i, kind in enumerate(types)
        ]
        self._bound = device.create_bind_group_layout(entries=entries)
        held = [{"binding": i, "resource": {"buffer": b}} for i, b in enumerate(buffers)]
        self._group = device.create_bind_group(layout=self._bound, entries=held)
        self._made: list[tuple[Any, tuple[int, ...]]] = []

    def add(self, code: str, grid: tuple[int, ...]) -> Kernels:
        module = self._device.create_shader_module(code=code)
        layout = self._device.create_pipeline_layout(bind_group_layouts=[self._bound])
        pipeline = self._device.create_compute_pipeline(
            layout=layout, compute={"module": module, "entry_point": "main"}
        )
        self._made.append((pipeline, grid))
        return self

    def run(self, times: int = 1) -> None:
        encoder = self._device.create_command_encoder()
        step = encoder.begin_compute_pass()
        step.set_bind_group(0, self._group)
        for _ in range(times):
            for pipeline, grid in self._made:
                step.set_pipeline(pipeline)
                step.dispatch_workgroups(*grid)
        step.end()
        self._device.queue.submit([encoder.finish()])


def buffer(device: Any, data: np.ndarray[Any, Any] | int, usage: int = STORAGE) -> Any:
    usage |= COPY_SRC | COPY_DST
    if isinstance(data, int):
        return device.create_buffer(size=data, usage=usage)
    return device.create_buffer_with_data(data=np.ascontiguousarray(data), usage=usage)


def mapped(
    device: Any, code: str, x: np.ndarray[Any, Any], dtype: type, count: int
) -> np.ndarray[Any, Any]:
    """What a shader of one input and one output makes of `x`, one thread a result."""
    size = np.dtype(dtype).itemsize * max(count, 2)
    made = buffer(device, x), buffer(device, -(-size // 4) * 4)
    groups = -(-count // 64)
    width = min(groups, 1024)
    Kernels(device, list(made), ["read-only-storage", "storage"]).add(
        code, (width, -(-groups // width))
    ).run()
    return np.frombuffer(device.queue.read_buffer(made[1]), dtype)[:count]
