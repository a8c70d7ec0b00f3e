"use strict";
const tools = document.getElementById("tools");
const search = document.getElementById("search");
const shown = document.getElementById("shown");
const buttons = [...tools.querySelectorAll("button")];
const cards = [...document.querySelectorAll(".card")].map((card) => ({
  card,
  kind: card.dataset.kind,
  text: card.textContent.toLowerCase(),
}));
let selected = "all";

function matchesKind(kind) {
  return selected === "all" || selected === kind || (selected === "quarantined" && kind !== "answered" && kind !== "filtered");
}

function update() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const { card, kind, text } of cards) {
    const visible = matchesKind(kind) && words.every((word) => text.includes(word));
    card.hidden = !visible;
    count += visible;
  }
  shown.textContent = count < cards.length ? `${count} of ${cards.length} match.` : "";
}

for (const button of buttons) {
  button.addEventListener("click", () => {
    selected = button.value;
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    update();
  });
}
search.addEventListener("input", update);
tools.hidden = false;
update();

const enlarged = document.getElementById("enlarged");
document.querySelector(".cards").addEventListener("click", (event) => {
  const image = event.target.closest(".images button")?.querySelector("img");
  if (!image) return;
  const close = document.createElement("button");
  close.type = "button";
  close.textContent = "Close";
  const name = document.createElement("bdi");
  name.textContent = image.alt;
  const shown = image.cloneNode();
  shown.loading = "eager";
  enlarged.replaceChildren(shown, name, close);
  enlarged.showModal();
});
// A click anywhere closes it, also beside it; so does the Escape key.
enlarged.addEventListener("click", () => enlarged.close());
