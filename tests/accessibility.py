"""What axe-core holds against a page, without looking twice at the same thing.

Nine tenths of axe's time go into the contrast of each word of each code cell: seven thousand on a
long page, in a dozen colours. Of words in a block of code that look the same, the first few stand
for all, and so do those of the signatures, types and names of the API's page; every other rule
sees all.
"""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

# Three of a kind: one may lie below something that floats. A single sign is another kind, because
# axe judges it by other rules.
RUN = """async () => {
  const properties = ["color", "backgroundColor", "backgroundImage", "fontSize", "fontWeight",
    "opacity", "visibility", "display", "position", "textShadow", "textDecorationLine"];
  const lookOf = (word) => {
    const style = getComputedStyle(word);
    const length = Math.min(word.textContent.trim().length, 2);
    return [length, word.closest("a") !== null, ...properties.map((name) => style[name])].join();
  };
  const leaveOut = (words) => {
    const seen = new Map();
    for (const word of words) {
      if (word.attributes.length > 1) continue;
      const look = lookOf(word);
      seen.set(look, (seen.get(look) ?? 0) + 1);
      if (seen.get(look) > 3) word.dataset.seenBefore = "";
    }
  };
  for (const block of document.querySelectorAll(".highlight pre"))
    leaveOut(block.querySelectorAll(":scope > span[class]:not(:has(*))"));
  const names = [":is(dt.sig, code) span[class]", ":is(em, strong)", "dt > span.colon"];
  leaveOut(document.querySelectorAll(names.map((name) => `dl.py ${name}:not(:has(*))`).join()));
  axe.configure({rules: [{id: "color-contrast", selector: "*:not([data-seen-before])"}]});
  return await axe.run(document, {resultTypes: ["violations"]});
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
