// The reader's GPU through WebGPU: opening it, memory, shaders, and time. Every wait here gives the
// page its thread back; no pass is meant to take longer than a tenth of a second.

const USAGE = { mapRead: 1, copyFrom: 4, copyTo: 8, uniform: 64, storage: 128, queries: 512 };
const WANTED = ["shader-f16", "timestamp-query"];

export const REFUSALS = {
  insecure: "Browsers show their GPU only to pages from https, from this machine or from a file. This page came over http.",
  missing: "This browser has no WebGPU, so the page cannot reach your GPU. Chrome, Edge, Safari 26 and Firefox 141 or later have it, not on every system.",
  adapter: "This browser has WebGPU but offers no GPU: there is none, or its driver is on the browser's block list.",
  closed: "The browser found a GPU but would not open it",
  memory: "The GPU has too little free memory for this measurement. Close other pages that draw a lot, and try again.",
  lost: "The browser lost the GPU in the middle of the work, as happens when a driver restarts. Start again to open it anew",
  half: "This GPU, or this browser on it, does not offer shader-f16: float16 is stored and converted here, and arithmetic is in float32.",
};

// The GPU, or `why` there is none.
export async function open(api = globalThis.navigator?.gpu) {
  if (!api) return { why: globalThis.isSecureContext === false ? REFUSALS.insecure : REFUSALS.missing };
  const adapter = await api.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  if (!adapter) return { why: REFUSALS.adapter };
  const features = WANTED.filter((name) => adapter.features.has(name));
  const { maxBufferSize, maxStorageBufferBindingSize } = adapter.limits;
  const requiredLimits = { maxBufferSize, maxStorageBufferBindingSize };
  try {
    return describe(adapter, await adapter.requestDevice({ requiredFeatures: features, requiredLimits }), features);
  } catch (error) {
    return { why: `${REFUSALS.closed}: ${error.message}` };
  }
}

function describe(adapter, device, features) {
  const info = adapter.info ?? {};
  const name = [info.vendor, info.architecture, info.device, info.description].filter(Boolean).join(", ");
  const software = Boolean(info.isFallbackAdapter ?? adapter.isFallbackAdapter) || /swiftshader|llvmpipe|software/i.test(name);
  const g = { device, software, name: name || "a GPU that the browser does not name", lost: null };
  Object.assign(g, { half: features.includes("shader-f16"), clock: features.includes("timestamp-query"), largest: adapter.limits.maxStorageBufferBindingSize });
  device.lost.then(({ message }) => { g.lost = message || "no reason given"; });
  return g;
}

const breathe = (ms = 0) => new Promise((go) => setTimeout(go, ms));

// Does some work, and throws in plain words what the device would only have logged.
export async function guarded(g, work) {
  g.device.pushErrorScope("validation");
  g.device.pushErrorScope("out-of-memory");
  let result, error;
  try { result = await work(); } catch (thrown) { error = thrown; }
  const [memory, invalid] = await Promise.all([g.device.popErrorScope(), g.device.popErrorScope()].map((p) => p.catch(() => null)));
  await breathe(); // the news of a lost device may come a little after the failure that it caused
  if (g.lost) throw new Error(`${REFUSALS.lost} (${g.lost}).`);
  if (memory) throw new Error(REFUSALS.memory);
  if (error || invalid) throw error ?? new Error(invalid.message);
  return result;
}

// --- Memory ------------------------------------------------------------------------------------------

export function memory(g, data, usage = USAGE.storage | USAGE.copyFrom | USAGE.copyTo) {
  const size = typeof data === "number" ? data : data.byteLength;
  const buffer = g.device.createBuffer({ size, usage });
  if (typeof data !== "number") g.device.queue.writeBuffer(buffer, 0, data);
  return buffer;
}
export const uniform = (g, data) => memory(g, data, USAGE.uniform | USAGE.copyTo);

export async function read(g, buffer, Type, { from = 0, size = buffer.size - from } = {}) {
  const copy = memory(g, size, USAGE.copyTo | USAGE.mapRead);
  const encoder = g.device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, from, copy, 0, size);
  g.device.queue.submit([encoder.finish()]);
  await copy.mapAsync(USAGE.mapRead);
  const values = new Type(copy.getMappedRange().slice(0));
  copy.destroy();
  return values;
}

// --- Shaders -----------------------------------------------------------------------------------------

// Compiled off the page's thread. `buffers` are bound in order; {buffer, size} binds the front of one.
// `types` says what they are where a shader leaves some of them out.
export async function compile(g, code, buffers, types) {
  const module = g.device.createShaderModule({ code });
  const bound = types && g.device.createBindGroupLayout({ entries: types.map((type, binding) => ({ binding, visibility: 4, buffer: { type } })) });
  const layout = bound ? g.device.createPipelineLayout({ bindGroupLayouts: [bound] }) : "auto";
  const pipeline = await g.device.createComputePipelineAsync({ layout, compute: { module, entryPoint: "main" } });
  const entries = buffers.map((b, binding) => ({ binding, resource: b.buffer ? b : { buffer: b } }));
  return { pipeline, group: g.device.createBindGroup({ layout: bound ?? pipeline.getBindGroupLayout(0), entries }) };
}

// One pass of some kernels, each {pipeline, group, grid}, all of them `times` over.
export function submit(g, kernels, times = 1, timestampWrites = undefined) {
  const encoder = g.device.createCommandEncoder();
  const pass = encoder.beginComputePass(timestampWrites ? { timestampWrites } : {});
  for (let i = 0; i < times; i++) {
    for (const kernel of kernels) {
      pass.setPipeline(kernel.pipeline);
      pass.setBindGroup(0, kernel.group);
      pass.dispatchWorkgroups(...kernel.grid);
    }
  }
  pass.end();
  if (timestampWrites) encoder.resolveQuerySet(g.queries, 0, 2, g.ticks, 0);
  g.device.queue.submit([encoder.finish()]);
}

// --- Time --------------------------------------------------------------------------------------------

const PASS_MS = 20, ROUNDS = 7; // browsers give the GPU's clock in steps of 0.1 ms

// Milliseconds of one pass: by the GPU's clock, or by the page's.
async function timed(g, kernel, times) {
  if (g.clock) {
    g.queries ??= g.device.createQuerySet({ type: "timestamp", count: 2 });
    g.ticks ??= memory(g, 16, USAGE.queries | USAGE.copyFrom);
    submit(g, [kernel], times, { querySet: g.queries, beginningOfPassWriteIndex: 0, endOfPassWriteIndex: 1 });
    const [start, end] = await read(g, g.ticks, BigUint64Array);
    if (end > start) return Number(end - start) / 1e6;
    if (times >= 64) g.clock = false; // a clock that stands still is none
  }
  const start = performance.now();
  submit(g, [kernel], times);
  await g.device.queue.onSubmittedWorkDone();
  return performance.now() - start;
}

// How many dispatches make a pass that is long enough to time.
async function fitting(g, kernel, stop) {
  await timed(g, kernel, 1); // warms up
  for (let times = 1; ;) {
    stop.throwIfAborted();
    const ms = await timed(g, kernel, times);
    if (ms >= PASS_MS / 2 || times >= 4096) return times;
    times = Math.min(4096, times * Math.max(2, Math.min(8, Math.floor(PASS_MS / Math.max(ms, 0.1)))));
  }
}

// Milliseconds of one dispatch of each kernel: the median, and the second and second to last as its
// spread. They take turns, so that a clock rate that drifts meets all of them.
export async function compare(g, kernels, stop) {
  const times = [];
  for (const kernel of kernels) times.push(await fitting(g, kernel, stop));
  const seen = kernels.map(() => []);
  for (let round = 0; round < ROUNDS; round++) {
    for (const [i, kernel] of kernels.entries()) {
      stop.throwIfAborted();
      seen[i].push((await timed(g, kernel, times[i])) / times[i]);
    }
  }
  return seen.map((all) => {
    all.sort((a, b) => a - b);
    return { ms: all[ROUNDS >> 1], low: all[1], high: all[ROUNDS - 2] };
  });
}
