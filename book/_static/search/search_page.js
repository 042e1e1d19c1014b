// The page of the search: what is typed goes into the address, and the hits below the box.
(function () {
  "use strict";
  const SHOWN = 20;
  const box = document.querySelector(".bd-search-container input[name=q]");
  const status = document.getElementById("search-status");
  const list = document.getElementById("search-results");
  const help = document.getElementById("search-help");
  if (!window.MPBOOK_SECTIONS) {
    status.textContent = "The list of sections did not load: open the page again, or read on below.";
    help.hidden = false;
    return;
  }
  const search = mpSearch(window.MPBOOK_SECTIONS);

  function element(name, className, ...content) {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...content);
    return made;
  }

  const marked = (pieces) => pieces.map(([text, found]) => (found ? element("mark", "", text) : text));

  function hit({ section, page, terms }) {
    const link = element("a", "", section.title);
    const root = document.documentElement.dataset.content_root ?? "./";
    link.href = `${root}${page.address}#${section.anchor}`;
    const item = element("li", "", element("p", "mp-hit", link));
    if (section.title !== page.title) item.append(element("p", "mp-hit-page", `in ${page.title}`));
    const text = section.means || section.text || section.code;
    item.append(element("p", "mp-hit-text", ...marked(mpExcerpt(text, terms))));
    return item;
  }

  function show() {
    const query = box.value.trim();
    const hits = query ? search(query) : [];
    list.replaceChildren(...hits.slice(0, SHOWN).map(hit));
    help.hidden = hits.length > 0;
    if (!query) status.textContent = "";
    else if (!hits.length) status.textContent = `No section of the book has anything like “${query}”.`;
    else if (hits.length > SHOWN) status.textContent = `The ${SHOWN} best of ${hits.length} sections`;
    else status.textContent = hits.length === 1 ? "One section" : `${hits.length} sections`;
    const address = new URL(location.href);
    if (query) address.searchParams.set("q", query);
    else address.searchParams.delete("q");
    history.replaceState(null, "", address);
  }

  // Arrows go from the box to the hits and along them; Tab does so too.
  function walk(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const places = [box, ...list.querySelectorAll("a")];
    const place = places.indexOf(document.activeElement);
    if (!step || place < 0) return;
    event.preventDefault();
    places[Math.min(Math.max(place + step, 0), places.length - 1)].focus();
  }

  let waiting;
  box.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(show, 150);
  });
  box.form.addEventListener("submit", (event) => {
    event.preventDefault();
    show();
  });
  box.closest(".bd-search-container").addEventListener("keydown", walk);
  box.value = new URLSearchParams(location.search).get("q") ?? "";
  show();
  box.focus();
})();
