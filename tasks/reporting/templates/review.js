"use strict";
const items = [...document.querySelectorAll(".review > li")];
const count = document.getElementById("count");
let unsaved = false;

function verdictOf(item) {
  return item.querySelector("input:checked")?.value;
}

function verdicts() {
  return items.filter(verdictOf).map((item) => ({
    row: Number(item.dataset.row),
    pair: Number(item.dataset.pair),
    digest: item.dataset.digest,
    verdict: verdictOf(item),
  }));
}

function update() {
  count.textContent = `${verdicts().length} of ${items.length} judged`;
}

document.querySelector(".review").addEventListener("change", () => {
  unsaved = true;
  update();
});

document.getElementById("save").addEventListener("click", () => {
  const content = JSON.stringify({ output: document.body.dataset.output, verdicts: verdicts() }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  link.download = "review.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  unsaved = false;
});

// A browser that comes back to the page may have kept what was chosen.
update();
window.addEventListener("beforeunload", (event) => {
  if (unsaved) event.preventDefault();
});
