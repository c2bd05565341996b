// The page is complete without this: it adds the numbers under the pointer, and the copy button.
"use strict";

const shown = (value) => value.toLocaleString("en", { maximumSignificantDigits: Math.abs(value) >= 1e4 ? 21 : 4, maximumFractionDigits: 4 });
const svgNode = (name) => document.createElementNS("http://www.w3.org/2000/svg", name);

function nearest(values, at) {
  let low = 0, high = values.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] < at) low = middle; else high = middle;
  }
  return at - values[low] < values[high] - at ? low : high;
}

function row(series, i) {
  const line = document.createElement("div"), dot = document.createElement("i");
  dot.className = `hue${series.hue}`;
  const range = series.low ? ` (${shown(series.low[i])} to ${shown(series.high[i])})` : "";
  line.append(dot, `${series.name}: ${shown(series.y[i])}${range}`);
  return line;
}

function describe(tooltip, data, at, reach) {
  const all = data.series.filter((s) => s.x.length && at >= s.x[0] - reach && at <= s.x[s.x.length - 1] + reach);
  const bold = all.filter((s) => s.low), near = [...bold, ...all.filter((s) => !s.low)];
  const head = document.createElement("b");
  head.textContent = data.unit === "steps" ? `step ${shown(Math.round(at))}` : `${shown(at)} ${data.unit}`;
  tooltip.replaceChildren(head, ...near.slice(0, 8).map((s) => row(s, nearest(s.x, at))));
  if (near.length > 8) tooltip.append(`and ${near.length - 8} more`);
}

function follow(plot, svg, data) {
  const [left, right, top, bottom] = svg.dataset.plot.split(" ").map(Number);
  const [low, high] = svg.dataset.x.split(" ").map(Number);
  const cursor = svgNode("line"), tooltip = document.createElement("div");
  tooltip.className = "tooltip";
  cursor.setAttribute("class", "cursor");
  cursor.setAttribute("y1", top);
  cursor.setAttribute("y2", bottom);
  const leave = () => { tooltip.remove(); cursor.remove(); };
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), px = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    if (px < left || px > right) return leave();
    describe(tooltip, data, low + (px - left) / (right - left) * (high - low), (high - low) / 50);
    cursor.setAttribute("x1", px);
    cursor.setAttribute("x2", px);
    svg.append(cursor);
    plot.append(tooltip);
    const x = event.clientX - box.left, after = x + 14 + tooltip.offsetWidth < box.width;
    tooltip.style.left = `${Math.max(0, after ? x + 14 : x - 14 - tooltip.offsetWidth)}px`;
    tooltip.style.top = `${Math.max(0, event.clientY - box.top - tooltip.offsetHeight - 8)}px`;
  });
}

for (const plot of document.querySelectorAll(".plot")) {
  const script = plot.querySelector("script");
  if (!script) continue; // columns tell their numbers themselves
  const data = JSON.parse(script.textContent);
  for (const svg of plot.querySelectorAll("svg")) follow(plot, svg, data);
}

for (const button of document.querySelectorAll(".copy")) {
  const text = button.parentElement.querySelector("pre");
  button.hidden = false;
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(text);
    // Pages opened from a file may not have the clipboard interface; the old command works on the selection.
    const done = navigator.clipboard ? navigator.clipboard.writeText(text.textContent).then(() => true, () => document.execCommand("copy")) : document.execCommand("copy");
    button.textContent = (await done) ? "Copied" : "Press Ctrl+C";
  });
}
