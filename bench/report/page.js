// Sorting of tables, and opening folded records when a number's trail leads there. The page is whole without it.
"use strict";
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const upward = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", upward ? "ascending" : "descending");
      body.append(...[...body.rows].sort((a, b) => compare(key(a, index), key(b, index), upward)));
    });
  });
}
function key(row, index) {
  const cell = row.cells[index];
  const number = cell.dataset.sort === undefined ? NaN : Number(cell.dataset.sort);
  return Number.isNaN(number) ? cell.textContent.trim() : number;
}
function compare(a, b, upward) {
  // Numbers before words, so that what was not measured stays at the end either way.
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  return upward ? order : -order;
}
function reveal() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let fold = target && target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  if (target) target.scrollIntoView({ block: target.tagName === "TR" ? "center" : "start" });
}
addEventListener("hashchange", reveal);
reveal();
