"use strict";
// Sorts a table by a click on a column's head, the better end first (data-first); a second click turns it round.
// Numbers are those of data-sort, and cells without one come last; the first column sorts by its letters. Where a table
// has several parts, each is sorted below its own title.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...[...head.childNodes].filter((node) => node.nodeName !== "SMALL"));
    head.prepend(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const turned = now === "ascending" ? "descending" : "ascending";
      const order = now ? turned : head.dataset.first ?? "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const number = (row) => Number(row.cells[column].dataset.sort ?? NaN);
      const compare = (a, b) => {
        if (column === 0) return sign * a.cells[0].textContent.trim().localeCompare(b.cells[0].textContent.trim());
        const [x, y] = [number(a), number(b)];
        return Number.isNaN(x) || Number.isNaN(y) ? Number.isNaN(x) - Number.isNaN(y) : sign * (x - y);
      };
      for (const body of table.tBodies) {
        body.append(...[...body.rows].filter((row) => !row.classList.contains("group")).sort(compare));
      }
    });
  });
}
