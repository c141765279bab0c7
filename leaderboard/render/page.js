"use strict";
// Sorting and filtering. Reported rows have a body of their own, which stays below and in its order.
const UNITS = { k: 1e3, M: 1e6, G: 1e9, T: 1e12, B: 1e9 };

// What a cell is sorted by: its first number, with its unit; nothing for a dash. Of two sides, the one that is ranked.
function number(text) {
  const found = /^(?:≥ \S+, (?=≤))?[≤≥~\s]*([-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?)([kMGTB]?)(?![\w-])/.exec(text);
  return found ? parseFloat(found[1].replaceAll(",", "")) * (UNITS[found[2]] || 1) : null;
}

function shown(cell) {
  return (cell.querySelector(".tip") || cell).firstChild?.textContent.trim() ?? "";
}

function compare(a, b, numeric) {
  if (numeric) return a - b;
  return a < b ? -1 : a > b ? 1 : 0;
}

function sort(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, text: shown(row.cells[column]) }));
  const known = rows.filter(({ text }) => text !== "–");
  const numeric = column > 0 && known.every(({ text }) => number(text) !== null);
  for (const item of rows) item.key = item.text === "–" ? null : numeric ? number(item.text) : item.text.toLowerCase();
  // What has no value is last either way.
  rows.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
    return compare(a.key, b.key, numeric) * (descending ? -1 : 1);
  });
  body.append(...rows.map(({ row }) => row));
}

for (const region of document.querySelectorAll(".scroll")) {
  const table = region.querySelector("table");
  if (!table.tBodies[0] || table.tBodies[0].rows.length < 2) continue;
  const heads = [...table.tHead.rows[0].cells];
  const sortable = !table.tBodies[0].classList.contains("reported");
  heads.forEach((head, column) => {
    if (!sortable) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sort(table, column, descending);
    });
  });
  const filter = document.createElement("input");
  filter.type = "search";
  filter.className = "filter";
  filter.placeholder = "Filter rows";
  filter.setAttribute("aria-label", `Filter rows: ${region.getAttribute("aria-label")}`);
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of table.querySelectorAll("tbody tr")) {
      const text = [...row.cells].map(shown).join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  region.before(filter);
}

document.querySelector("#sorting").hidden = false;

// A text about a number goes away with Escape, as it would with the focus.
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.activeElement?.blur();
});
