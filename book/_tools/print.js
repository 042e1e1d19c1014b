// Fits a page to paper: what is wider than its place is shrunk, to SMALLEST at most, and then broken.
// Returns what is cut off all the same. The page has the width of the paper.
() => {
  const SMALLEST = 0.7;
  const room = (element) => {
    const style = getComputedStyle(element);
    return element.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  };
  const shrink = (element, ratio) => {
    element.style.zoom = Math.max(ratio, SMALLEST);
    if (ratio < SMALLEST) element.classList.add("mp-wrapped");
  };
  for (const listing of document.querySelectorAll("pre")) {
    const ratio = listing.clientWidth / listing.scrollWidth;
    if (ratio < 1) {
      listing.style.fontSize = `${Math.max(ratio * 0.98, SMALLEST) * parseFloat(getComputedStyle(listing).fontSize)}px`;
      if (listing.scrollWidth > listing.clientWidth) listing.classList.add("mp-wrapped");
    }
  }
  for (const table of document.querySelectorAll("table")) {
    const ratio = room(table.parentElement) / table.offsetWidth;
    if (ratio < 1) shrink(table, ratio * 0.99);
  }
  for (const formula of document.querySelectorAll('mjx-container[display="true"]')) {
    const ratio = formula.clientWidth / formula.scrollWidth;
    if (ratio < 1) formula.style.fontSize = `${ratio * 98}%`;
  }
  const cut = (element) => {
    if (element.closest("mjx-assistive-mml, svg, .mp-contents")) return false;
    const style = getComputedStyle(element);
    const outside = element.getBoundingClientRect().right > innerWidth + 1;
    const hidden = style.overflowX !== "visible" || element.matches("pre");
    return style.display !== "none" && (outside || (hidden && element.scrollWidth > element.clientWidth + 1));
  };
  return [...document.body.querySelectorAll("pre, table, img, svg, mjx-container, p, h1, h2, h3, li, div")]
    .filter(cut)
    .map((element) => `${element.closest(".mp-page")?.id ?? "title"}: <${element.tagName.toLowerCase()}> ${element.textContent.trim().slice(0, 80)}`);
}
