"""What axe-core holds against a page, without looking twice at the same thing.

Most of axe's time goes into the contrast of each piece of text: seven thousand on a long page, in a
dozen colours.  Of texts that look the same on the same ground, the first few stand for all, but for
those with a style of their own and for controls; every other rule sees everything.  Rules whose
violations axe calls moderate or minor do not run.
"""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

# Five of a kind: one may lie below something that floats. A single sign is another kind, because
# axe judges it by other rules, and so is another class: it may have another colour in the dark.
RUN = """async () => {
  const properties = ["color", "backgroundColor", "backgroundImage", "fontSize", "fontWeight",
    "opacity", "visibility", "display", "position", "textShadow", "textDecorationLine"];
  const textOf = ({childNodes}) =>
    [...childNodes].map((node) => (node.nodeType === Node.TEXT_NODE ? node.data : "")).join("");
  const lookOf = (element, text) => {
    const style = getComputedStyle(element), link = element.closest("a") !== null;
    const kind = [element.className, Math.min(text.length, 2), link];
    return [...kind, ...properties.map((name) => style[name])].join();
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
  const controls = "input, select, textarea, button, label, option";
  for (const element of document.querySelectorAll(`body :not([style], script, ${controls})`)) {
    delete element.dataset.seenBefore;
    const text = textOf(element).trim();
    if (!text) continue;
    const look = `${lookOf(element, text)} on ${groundOf(element.parentElement)}`;
    seen.set(look, (seen.get(look) ?? 0) + 1);
    if (seen.get(look) > 5) element.dataset.seenBefore = "";
  }
  const lenient = axe._audit.rules.filter(({impact}) => ["moderate", "minor"].includes(impact));
  axe.configure({rules: [
    {id: "color-contrast", selector: "*:not([data-seen-before])"},
    ...lenient.map(({id}) => ({id, enabled: false})),
  ]});
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
