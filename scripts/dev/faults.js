// What is wrong with the page that is open, a line a fault; run by screenshots.py.
(async () => {
  await document.fonts.ready;
  const faults = [];
  const width = document.documentElement.clientWidth;
  const box = e => e.getBoundingClientRect();
  const tell = (fault, e) =>
    faults.push(`${fault}: ${e.tagName.toLowerCase()} ${e.getAttribute("src") || e.textContent}`.replace(/\s+/g, " ").slice(0, 100));

  // Nothing reaches beyond the window or into the right column, unless it scrolls in a box of its own.
  const scrolls = e => {
    for (; e && !e.matches(".content"); e = e.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(e).overflowX)) return true;
    return false;
  };
  const column = document.querySelector(".toc-drawer");
  const right = column && box(column).width && box(column).left > 0 ? Math.min(width, box(column).left) : width;
  const skipped = ".katex-mathml, .katex svg, .headerlink, .visually-hidden";
  const cut = [...document.querySelectorAll(".content *")].filter(
    e => box(e).width && box(e).right > right + 1 && !e.closest(skipped) && !scrolls(e));
  if (document.documentElement.scrollWidth > width) faults.push("the page is wider than the window");
  for (const e of cut) if (!cut.some(other => other !== e && other.contains(e))) tell("cut at the right", e);

  for (const e of document.images) if (!e.complete || !e.naturalWidth) tell("no picture", e);

  for (const e of document.querySelectorAll(".math")) if (!e.querySelector(".katex")) tell("formula not typeset", e);
  for (const e of document.querySelectorAll(".katex-error")) tell("formula with an error", e);
  const words = document.createTreeWalker(document.querySelector("article") || document.body, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const e = words.currentNode.parentElement;
    if (/\$[^\s$][^$]*\$/.test(words.currentNode.data) && !e.closest("pre, code, .math, script")) tell("LaTeX in the text", e);
  }

  for (const e of document.querySelectorAll("code.literal:not(.long) span.pre"))
    if (/^--?\w/.test(e.textContent) && e.getClientRects().length > 1) tell("flag on two lines", e);

  return JSON.stringify(faults);
})()
