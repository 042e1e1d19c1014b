// The search of the book, without a page: `mpSearch(knowledge)` indexes the sections that
// search_sections.js holds and returns a function from what people type to the hits, best first.
// MiniSearch ranks; this file says what a word is, which words mean the same, and what counts most.
(function (root) {
  "use strict";

  // Words that mean the same here. `says`: in a text and in a query alike. `asks`: in a query only,
  // because a text uses them for something else as well ("half the memory").
  const CONCEPTS = {
    float16: { says: ["float16", "fp16", "f16", "half precision"], asks: ["half"] },
    bfloat16: { says: ["bfloat16", "bf16", "brain float", "brain floating point"] },
    float32: { says: ["float32", "fp32", "f32", "single precision", "full precision"] },
    float64: { says: ["float64", "fp64", "double precision"], asks: ["double"] },
    tfloat32: { says: ["tfloat32", "tf32", "tensorfloat", "tensorfloat32"] },
    float8: { says: ["float8", "fp8", "e4m3", "e4m3fn", "e5m2", "float8_e4m3fn", "float8_e5m2"] },
    float4: { says: ["float4", "fp4", "nvfp4", "mxfp4", "e2m1", "float4_e2m1fn"] },
    amp: { says: ["amp", "autocast", "torch.autocast", "automatic mixed precision"], asks: ["mixed_precision", "mixed precision"] },
    oom: { says: ["oom", "out of memory", "out-of-memory", "outofmemoryerror", "runs out of memory"] },
    memory: { says: ["memory", "vram", "gpu ram"], asks: ["ram"] },
    rl: { says: ["rl", "reinforcement learning", "rlhf", "grpo", "ppo"] },
    allreduce: { says: ["allreduce", "all-reduce", "all reduce", "all_reduce"] },
    fsdp: { says: ["fsdp", "fsdp2", "fully_shard", "fully sharded", "fullyshardeddataparallel"] },
    ddp: { says: ["ddp", "distributeddataparallel", "distributed data parallel"] },
    severalgpus: { says: ["several gpus", "many gpus", "multi-gpu", "multigpu", "multiple gpus"] },
    nan: { says: ["nan", "nans", "not a number"] },
    inf: { says: ["inf", "infs", "infinity", "infinite", "-inf"] },
    gradient: { says: ["gradient", "grad", "grads", "gradients"] },
    lossscale: { says: ["loss scale", "loss scaler", "loss scaling", "gradscaler", "lossscaler", "grad scaler", "dynamic scaling"], asks: ["scaler"] },
    masterweights: { says: ["master weights", "master weight", "master copy", "master copies"] },
    attention: { says: ["attention", "sdpa", "scaled_dot_product_attention", "flashattention", "flash attention"] },
    checkpointing: { says: ["activation checkpointing", "gradient checkpointing", "gradient_checkpointing", "recompute", "recomputation"] },
    accumulation: { says: ["gradient accumulation", "gradient_accumulation_steps", "accumulate gradients", "grad accumulation"] },
    batchnorm: { says: ["batchnorm", "batch norm", "batchnorm2d", "batch normalization"] },
    layernorm: { says: ["layernorm", "layer norm", "rmsnorm", "layer normalization"] },
    ema: { says: ["ema", "moving average", "exponential moving average"] },
    clipping: { says: ["clip_grad_norm", "clip_grad_norm_", "gradient clipping", "clip gradients", "max_grad_norm"], asks: ["clip", "clipping"] },
    several: { says: ["several", "multiple"], asks: ["two", "many"] },
    slow: { says: ["slow", "slower", "no faster", "not faster", "no speed-up", "no speedup"] },
    faster: { says: ["faster", "speed-up", "speedup", "speed up"] },
    learningrate: { says: ["learning rate", "lr"] },
    compile: { says: ["torch.compile", "inductor", "torchinductor"], asks: ["compile", "compiled"] },
    inference: { says: ["inference", "generation", "generate", "sampling", "decoding"] },
    softmax: { says: ["softmax", "log_softmax"] },
    crossentropy: { says: ["cross_entropy", "crossentropyloss", "cross entropy", "cross-entropy"] },
  };

  const IGNORED = new Set(
    ("a an and are as at be been but by can do does did for from had has have how i if in is it its me my of on or " +
      "our so than that the their then there these they this to was we were what when where which while who why " +
      "will with would you your just get gets getting got should could am need needs needed " +
      // "difference between fp16 and bf16", "fp16 vs bf16": how one asks, not what about
      "between difference differences versus vs").split(" "),
  );

  // One text in one spelling: small letters, plain signs, numbers without separators.
  function spelled(text) {
    return text
      .normalize("NFKC")
      .toLowerCase()
      .replace(/[‘’]/g, "'")
      .replace(/[−‐‑–—]/g, "-")
      .replace(/(\d)[, \u202f](?=\d{3}(?!\d))/g, "$1")
      .replace(/(\d)\s?(?:\*\*|\^)\s?[({]?(-?\d+)[)}]?/g, "$1^$2")
      .replace(/\.half\(\)/g, ".half() fp16")
      .replace(/(\d)[\s-]?bits?\b/g, "$1bit")
      .replace(/(\d)\s(gb|mb|kb|gib|mib|kib|tb|tflop|tflops)\b/g, "$1$2");
  }

  // A number keeps its sign of an exponent and its unit; a name keeps its underscores.
  const WORD = /\d+(?:\.\d+)?(?:e[-+]?\d+|\^-?\d+)?[a-z%_\d]*|[\p{L}_][\p{L}\p{N}_]*/gu;

  const words = (text) => spelled(text).match(WORD) ?? [];

  function stem(word) {
    if (word.length < 4 || /[\d_]/.test(word)) return word;
    const base = word.replace(/(?:'s|s')$/, "").replace(/([^s])s$/, "$1");
    const cut = base.replace(/(?:ing|ed|e)$/, "");
    return cut.length >= 3 ? cut : base;
  }

  // What MiniSearch is to index: the words, the parts of names, and the concepts behind them.
  const LONGEST = 3;
  const SAYS = new Map();
  const ASKS = new Map();
  for (const [concept, { says, asks = [] }] of Object.entries(CONCEPTS)) {
    for (const way of says) SAYS.set(words(way).join(" "), `~${concept}`);
    for (const way of [...says, ...asks]) ASKS.set(words(way).join(" "), `~${concept}`);
  }

  function terms(text, concepts = SAYS, spoken = new Set()) {
    const said = words(text);
    const found = [];
    said.forEach((word, place) => {
      for (let length = 1; length <= LONGEST; length += 1) {
        const way = said.slice(place, place + length);
        const concept = concepts.get(way.join(" "));
        if (!concept) continue;
        found.push(concept);
        way.map(stem).forEach((one) => spoken.add(one));
      }
      if (IGNORED.has(word)) return;
      found.push(stem(word));
      const parts = word.split("_").filter((part) => part.length > 1);
      if (parts.length < 2) return;
      found.push(...parts.map(stem));
      parts.forEach((part) => spoken.add(stem(part)));
    });
    return found;
  }

  const isWord = (term) => !/[\d~^]/.test(term);
  const RANKING = {
    boost: { seen: 5, title: 4, words: 4, page: 0.6, means: 1.5, text: 1, code: 0.4 },
    bm25: { k: 1.2, b: 0.5, d: 0.5 },
    // Fuzzy and prefix help what people mistype or leave unfinished; numbers and concepts are exact.
    fuzzy: (term) => (isWord(term) && term.length > 4 ? 0.2 : false),
    prefix: (term) => isWord(term) && term.length > 3,
    weights: { fuzzy: 0.25, prefix: 0.35 },
  };
  // Headings that every chapter has, and places that name a thing without answering a question.
  const GENERAL = /^(?:exercises|explain it in an interview|traps|see it fail|what it costs)\b/i;
  const STANDING = { section: 1, term: 0.7, object: 0.45 };

  const within = (text, inside) => ` ${words(inside).join(" ")} `.includes(` ${words(text).join(" ")} `);

  // What a text is about, in one spelling: "fp16" and "float16" are the same.
  function meaning(text) {
    const spoken = new Set();
    return terms(text, ASKS, spoken).filter((term) => !spoken.has(term));
  }
  const same = (a, b) => [...new Set(a)].sort().join() === [...new Set(b)].sort().join();

  // From 0 to 1: how far two texts are about the same. A single word in common is chance.
  function likeness(text, asked) {
    const about = new Set(meaning(text));
    const both = [...about].filter((term) => asked.has(term)).length;
    return both < 2 ? 0 : both / (about.size + asked.size - both);
  }

  // How much better a section is for holding what was typed word for word, or being what was typed.
  function literally(section, query) {
    const said = [section.title, ...(section.seen ?? [])];
    const asked = new Set(meaning(query));
    if (same(meaning(section.title), asked)) return 4;
    const typed = 1 + 2 * Math.max(0, ...(section.words ?? []).map((text) => likeness(text, asked))) ** 2;
    if (said.some((text) => words(text).length > 1 && within(text, query))) return Math.max(2, typed);
    return Math.max(words(query).length > 1 && said.some((text) => within(query, text)) ? 1.6 : 1, typed);
  }

  function mpSearch(knowledge) {
    const { pages, sections } = knowledge;
    const index = new root.MiniSearch({
      fields: ["title", "seen", "words", "means", "page", "text", "code"],
      tokenize: (text) => terms(text),
      processTerm: (term) => term,
    });
    index.addAll(
      sections.map(({ page, title, text, code, seen = [], means = "", words: said = [] }, id) => ({
        id, title, text, code, means, seen: seen.join("\n"), words: said.join("\n"), page: pages[page].title,
      })),
    );

    return function search(query) {
      const spoken = new Set(); // what a concept or a longer name already says counts little beside it
      const asked = [...new Set(terms(query, ASKS, spoken))];
      if (!asked.length) return [];
      const options = {
        ...RANKING, tokenize: () => asked, processTerm: (term) => term,
        boostTerm: (term) => (spoken.has(term) ? 0.3 : 1),
      };
      return index
        .search(query, options)
        .map(({ id, score, queryTerms, terms: matched }) => {
          const section = sections[id];
          const standing = GENERAL.test(section.title) ? 0.6 : STANDING[section.kind];
          // MiniSearch multiplies by how many words are there; here the share of what is meant counts.
          const meant = (list) => new Set(list.filter((term) => !spoken.has(term))).size;
          const share = Math.max(meant(queryTerms) / Math.max(meant(asked), 1), 0.1);
          return {
            section, page: pages[section.page], terms: matched,
            score: (score / queryTerms.length) * standing * share * (0.4 + share) * literally(section, query),
          };
        })
        .sort((a, b) => b.score - a.score);
    };
  }

  // The stretch of a section that shows most of what was found, in pieces: [text, found].
  function excerpt(text, matched, length = 220) {
    const wanted = new Set(matched);
    const marks = [...text.toLowerCase().matchAll(WORD)].map((found) => ({
      start: found.index,
      end: found.index + found[0].length,
      hits: terms(found[0]).filter((term) => wanted.has(term)),
    }));
    const hit = marks.filter(({ hits }) => hits.length);
    let best = { start: 0, worth: -1 };
    for (const { start } of hit) {
      const seen = hit.filter((mark) => mark.start >= start && mark.end <= start + length);
      const worth = new Set(seen.flatMap(({ hits }) => hits)).size;
      if (worth > best.worth) best = { start, worth };
    }
    const before = text.lastIndexOf(" ", Math.max(best.start - 40, 0));
    const from = best.start < length / 2 ? 0 : before + 1;
    const to = from + length >= text.length ? text.length : text.lastIndexOf(" ", from + length);
    const pieces = [];
    let at = from;
    for (const { start, end } of hit) {
      if (start < at || end > to) continue;
      pieces.push([text.slice(at, start), false], [text.slice(start, end), true]);
      at = end;
    }
    pieces.push([text.slice(at, to), false]);
    if (from > 0) pieces.unshift(["… ", false]);
    if (to < text.length) pieces.push([" …", false]);
    return pieces.filter(([piece]) => piece);
  }

  root.mpSearch = mpSearch;
  root.mpExcerpt = excerpt;
})(globalThis);
