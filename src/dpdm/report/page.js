"use strict";
// Show one class or all, enlarge a picture, and say the value under the pointer or the focus.
for (const button of document.querySelectorAll(".filter button")) {
  button.addEventListener("click", () => {
    for (const other of document.querySelectorAll(".filter button"))
      other.setAttribute("aria-pressed", String(other === button));
    for (const row of document.querySelectorAll(".class[data-class]"))
      row.hidden = button.dataset.class !== "" && row.dataset.class !== button.dataset.class;
  });
}
for (const image of document.querySelectorAll(".class img"))
  image.addEventListener("click", () => image.classList.toggle("near"));
for (const chart of document.querySelectorAll(".chart")) {
  const said = chart.querySelector("output");
  chart.addEventListener("pointerover", (event) => {
    if (event.target.dataset && event.target.dataset.value) said.textContent = event.target.dataset.value;
  });
}
