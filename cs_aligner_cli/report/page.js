// A frame that does not hold all of its table or figure can be scrolled by the keyboard; others are no stop on the way.
const reachable = () => {
  for (const frame of document.querySelectorAll(".scroll, .paper")) {
    if (frame.scrollWidth > frame.clientWidth) frame.tabIndex = 0;
    else frame.removeAttribute("tabindex");
  }
};
addEventListener("resize", reachable);
document.addEventListener("toggle", reachable, true);
reachable();

// Shows the pair whose point is under the mouse or has the focus; its text comes from the data, and is only ever text.
// The map is one stop for the keyboard: the arrows go from point to point, from left to right; Home and End to its ends.
const pointed = document.getElementById("pointed");
const pairs = [...document.querySelectorAll(".map g")];
const place = (pair) => Number(pair.querySelector("circle").getAttribute("cx"));
const inOrder = [...pairs].sort((a, b) => place(a) - place(b));
const show = (pair) => {
  const photo = document.createElement(pair.dataset.photo ? "img" : "div");
  if (pair.dataset.photo) {
    photo.src = pair.dataset.photo;
    photo.alt = pair.dataset.id;
  } else {
    photo.className = "photo none";
    photo.textContent = pair.dataset.id;
  }
  pointed.replaceChildren(photo, pair.querySelector("title").textContent);
};
const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
inOrder.forEach((pair, i) => {
  pair.tabIndex = i ? -1 : 0;
  pair.addEventListener("pointerenter", () => show(pair));
  pair.addEventListener("focus", () => show(pair));
  pair.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    event.preventDefault();
    const next = inOrder[Math.min(Math.max(i + steps[event.key], 0), inOrder.length - 1)];
    inOrder.forEach((other) => (other.tabIndex = other === next ? 0 : -1));
    next.focus();
  });
});
