// Replace the LaTeX of each formula by its KaTeX rendering; what is wrong in one stays as red LaTeX (class katex-error).
for (const place of document.querySelectorAll(".math")) {
  katex.render(place.textContent, place, { displayMode: place.tagName === "DIV", throwOnError: false });
}
