// The box above the symptoms: leaves the entries that have what is typed, and says so when none has.
// Without this script the page shows all of them, and no box.
(function () {
  "use strict";

  // Signs that people leave out or paste in another shape count as spaces.
  const spelled = (text) =>
    ` ${text.normalize("NFKC").toLowerCase().replace(/[^\p{L}\p{N}_%=.-]+/gu, " ").trim()} `;

  const entries = [...document.querySelectorAll(".mp-symptom")].map((element) => {
    const copy = element.cloneNode(true);
    copy.querySelectorAll(".headerlink, .copybtn").forEach((extra) => extra.remove());
    return { element, text: spelled(copy.textContent) };
  });
  const kinds = [...document.querySelectorAll(".mp-kind")];

  // An entry stays if it has more of the words than most: a pasted message has words of its own.
  function having(query) {
    const words = [...new Set(spelled(query).split(" ").filter(Boolean))];
    const counts = entries.map(({ text }) => words.filter((word) => text.includes(` ${word}`)).length);
    const most = Math.max(...counts);
    return most * 2 > words.length || !words.length ? entries.filter((_, i) => counts[i] === most) : [];
  }

  const made = document.createElement("template");
  made.innerHTML = `
    <form class="mp-filter-form" role="search" aria-label="Symptoms">
      <label for="mp-filter-input">Part of an error message, or what you see</label>
      <input id="mp-filter-input" class="form-control" type="search" autocomplete="off" spellcheck="false">
      <p role="status" class="mp-filter-status"></p>
    </form>`;
  const place = document.querySelector(".mp-filter");
  place.append(made.content);
  const box = place.querySelector("input");
  const status = place.querySelector("[role=status]");

  function sayNothing(query) {
    const link = document.createElement("a");
    link.href = `${document.documentElement.dataset.content_root ?? "./"}search.html?q=${encodeURIComponent(query)}`;
    link.textContent = "search the whole book for it";
    status.replaceChildren("No entry has these words. Type fewer of them, without shapes and names, or ", link, ".");
  }

  function filter() {
    const query = box.value.trim();
    const left = new Set(having(query).map(({ element }) => element));
    for (const { element } of entries) element.hidden = !left.has(element);
    document.querySelector(".mp-kinds").hidden = query !== "";
    for (const kind of kinds) kind.hidden = !kind.querySelector(".mp-symptom:not([hidden])");
    if (!left.size) sayNothing(query);
    else status.textContent = query ? `${left.size} of ${entries.length} entries` : "";
  }

  // A link to an entry shows it, whatever is typed.
  function reveal() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target?.closest("[hidden]")) return;
    box.value = "";
    filter();
    target.scrollIntoView();
  }

  box.addEventListener("input", filter);
  box.form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", reveal);
  filter();
})();
