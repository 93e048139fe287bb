"use strict";
// Sorts the table by a click on a column's head, the better end first; a second click turns it round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const turned = now === "ascending" ? "descending" : "ascending";
      const order = now ? turned : head.dataset.first ?? "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => {
        const [x, y] = [Number(key(a)), Number(key(b))];
        if (column === 0) return sign * key(a).localeCompare(key(b));
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return sign * (x - y);
      }));
    });
  });
}
