"""What axe-core holds against a page, without looking twice at the same thing.

Nine tenths of axe's time go into the contrast of each word of each code cell: seven thousand on a
long page, in a dozen colours. Of words in blocks of code that look the same on the same ground, the
first few stand for all, and so do those of the signatures, types and names of the API's page and of
the entries of the page of symptoms, which one directive makes; every other rule sees all.
"""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

# Five of a kind: one may lie below something that floats. A single sign is another kind, because
# axe judges it by other rules.
RUN = """async () => {
  const properties = ["color", "backgroundColor", "backgroundImage", "fontSize", "fontWeight",
    "opacity", "visibility", "display", "position", "textShadow", "textDecorationLine"];
  const lookOf = (word) => {
    const style = getComputedStyle(word);
    const length = Math.min(word.textContent.trim().length, 2);
    return [length, word.closest("a") !== null, ...properties.map((name) => style[name])].join();
  };
  const grounds = new Map();
  const groundOf = (block) => {
    if (!block) return "";
    if (!grounds.has(block)) {
      const {backgroundColor, backgroundImage, opacity} = getComputedStyle(block);
      const own = `${backgroundColor} ${backgroundImage} ${opacity}`;
      grounds.set(block, `${groundOf(block.parentElement)}/${own}`);
    }
    return grounds.get(block);
  };
  const seen = new Map();
  const leaveOut = (words) => {
    for (const word of words) {
      if (word.hasAttribute("style")) continue;
      const look = `${lookOf(word)} on ${groundOf(word.parentElement)}`;
      seen.set(look, (seen.get(look) ?? 0) + 1);
      if (seen.get(look) > 5) word.dataset.seenBefore = "";
    }
  };
  const code = [".highlight pre > span[class]", "code > span.pre", ".mp-symptom :is(p, a, span)"];
  leaveOut(document.querySelectorAll(code.map((words) => `${words}:not(:has(*))`).join()));
  const names = [":is(dt.sig, code) span[class]", ":is(em, strong)", "dt > span.colon"];
  leaveOut(document.querySelectorAll(names.map((name) => `dl.py ${name}:not(:has(*))`).join()));
  axe.configure({rules: [{id: "color-contrast", selector: "*:not([data-seen-before])"}]});
  return await axe.run(document, {resultTypes: ["violations"], preload: false});
}"""


def serious_violations(page: Page) -> list[str]:
    """What axe-core calls serious or critical, one line a place."""
    page.evaluate(Axe().axe_script)
    return [
        f"{found['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for found in page.evaluate(RUN)["violations"]
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]
