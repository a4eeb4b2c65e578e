const tip = document.body.appendChild(Object.assign(document.createElement("div"), { className: "tip", hidden: true }));
document.querySelectorAll(".chart title").forEach((title) => {
  title.parentElement.dataset.tip = title.textContent;
  title.remove();
});

function points(path) {
  const found = [];
  for (const [, kind, x, y] of path.getAttribute("d").matchAll(/([Ml])(-?\d+) (-?\d+)/g)) {
    const before = kind === "l" ? found.at(-1) : [0, 0];
    found.push([before[0] + Number(x), before[1] + Number(y)]);
  }
  return found;
}

function valuesUnderPointer(plot, event) {
  const box = plot.closest(".chart > svg").getBoundingClientRect();
  const left = parseFloat(getComputedStyle(plot.closest(".chart > svg")).paddingLeft);
  const at = (1000 * (event.clientX - box.left - left)) / (box.width - left);
  const values = [...plot.querySelectorAll("path")].map((path) => {
    const before = points(path).filter((point) => point[0] <= at).at(-1);
    const value = before && (1 - before[1] / 1000) * plot.dataset.y;
    return before && `${path.dataset.name} ${Number(value.toPrecision(3))} ${plot.dataset.unit}`.trim();
  });
  return values.filter(Boolean).join(", ");
}

document.addEventListener("pointermove", (event) => {
  const panel = event.target.closest?.(".plot");
  const text = panel ? valuesUnderPointer(panel, event) : event.target.closest?.("[data-tip]")?.dataset.tip;
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  tip.style.left = `${Math.max(0, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${Math.max(0, event.clientY - tip.offsetHeight - 8)}px`;
});

document.querySelectorAll(".legend li").forEach((key) => {
  const parts = [...key.closest(".chart").querySelectorAll("svg [class]:is(rect, path, line)")];
  const colored = parts.filter((part) => /^(c|mark|band)-/.test(part.getAttribute("class")));
  const dim = (on) => colored.forEach((part) => part.classList.toggle("dim", on && !part.classList.contains(key.className)));
  key.addEventListener("pointerenter", () => dim(true));
  key.addEventListener("pointerleave", () => dim(false));
});
