"use strict";
// Sorts a table by a click on a column's head: numbers by data-sort, text by its letters; a second click turns it round.
// Where a table has several parts, each is sorted below its own title.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
      const compare = (a, b) => {
        const [x, y] = [Number(key(a)), Number(key(b))];
        if (Number.isNaN(x) || Number.isNaN(y)) return key(a).localeCompare(key(b)) * (up ? 1 : -1);
        return (x - y) * (up ? 1 : -1);
      };
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
        body.append(...rows.sort(compare));
      }
    });
  });
}

// Shows the pair whose point is under the mouse or has the focus; its text comes from the data, and is only ever text.
const told = document.getElementById("told");
for (const pair of document.querySelectorAll(".map g")) {
  const tell = () => {
    const photo = document.createElement(pair.dataset.photo ? "img" : "div");
    if (pair.dataset.photo) {
      photo.src = pair.dataset.photo;
      photo.alt = pair.dataset.id;
    } else {
      photo.className = "photo none";
      photo.textContent = pair.dataset.id;
    }
    told.replaceChildren(photo, pair.dataset.text);
  };
  pair.addEventListener("pointerenter", tell);
  pair.addEventListener("focus", tell);
}
