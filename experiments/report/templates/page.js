const figures = JSON.parse(document.getElementById("figures").textContent);
const places = [...document.querySelectorAll("[data-figure]")];
const widths = new Map();

function painted(value, style) {
  if (typeof value === "string") {
    return value.replace(/--c-[a-z0-9-]+/g, (name) => style.getPropertyValue(name).trim() || name);
  }
  if (Array.isArray(value)) return value.map((item) => painted(item, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, painted(item, style)]));
}

function draw(place) {
  const figure = painted(figures[place.dataset.figure], getComputedStyle(document.documentElement));
  Plotly.react(place, figure.data, figure.layout, { displayModeBar: false });
}

function fit(place) {
  const width = place.offsetWidth;
  if (width === 0 || widths.get(place) === width) return;
  if (widths.has(place)) Plotly.Plots.resize(place);
  else draw(place);
  widths.set(place, width);
}

const watcher = new ResizeObserver((entries) => {
  setTimeout(() => entries.forEach((entry) => fit(entry.target)));
});

function openTarget(hash) {
  const target = hash && document.getElementById(decodeURIComponent(hash.slice(1)));
  if (!target) return;
  for (let box = target.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
  target.scrollIntoView();
}

addEventListener("hashchange", () => openTarget(location.hash));
document.addEventListener("click", (event) => openTarget(event.target.closest("a[href^='#']")?.hash));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => [...widths.keys()].forEach(draw));
places.forEach((place) => {
  if (!place.closest("details:not([open])")) fit(place);
  watcher.observe(place);
});
openTarget(location.hash);
