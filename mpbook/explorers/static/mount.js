// Runs the explorers of a built page without a kernel. Each <mp-widget data-widget="NAME"> holds its
// state as JSON and a static picture; the explorer's own module, whose source explorers_bundle.js
// put into window.MPBOOK_EXPLORERS, replaces the picture. Browsers refuse to import a module file
// from file://, but they import a blob: URL of its source from anywhere.
(function () {
  "use strict";

  // As much of anywidget's model as a render() uses, without anybody at the other end.
  function makeModel(state) {
    const listeners = new Map();
    const of = (event) => listeners.get(event) ?? listeners.set(event, new Set()).get(event);
    return {
      get: (name) => state[name],
      set(name, value) {
        if (state[name] === value) return;
        state[name] = value;
        of(`change:${name}`).forEach((listener) => listener());
      },
      save_changes() {},
      on: (event, listener) => of(event).add(listener),
      off: (event, listener) => of(event).delete(listener),
    };
  }

  const modules = new Map();
  function load(name) {
    if (!modules.has(name)) {
      const source = (window.MPBOOK_EXPLORERS ?? {})[name];
      if (source === undefined) return Promise.reject(new Error(`explorers_bundle.js holds no ${name}`));
      const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
      modules.set(name, import(url).finally(() => URL.revokeObjectURL(url)));
    }
    return modules.get(name);
  }

  class MpWidget extends HTMLElement {
    connectedCallback() {
      if (document.readyState !== "loading") this.mount();
      else document.addEventListener("DOMContentLoaded", () => this.mount(), { once: true });
    }

    // On any failure the static picture stays.
    async mount() {
      if (this.model) return;
      const state = this.querySelector('script[type="application/json"]');
      this.model = makeModel(JSON.parse(state.textContent));
      const explorer = (await load(this.dataset.widget)).default;
      const live = document.createElement("div");
      await explorer.render({ model: this.model, el: live });
      this.replaceChildren(live);
    }
  }
  customElements.define("mp-widget", MpWidget);
})();
