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
  return selected === "all" || selected === kind || (selected === "quarantined" && kind !== "answered");
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
