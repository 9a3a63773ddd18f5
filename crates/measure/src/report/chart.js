"use strict";
// One panel's curves as SVG: ticks, bands, lines with dashes and markers, labels at their ends, and a read-out.

const SVG = "http://www.w3.org/2000/svg";

const make = (name, attributes, text) => {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
};

// Four significant digits with a real minus sign; powers of ten only where digits would not be read.
const number = (value, digits = 4) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e6 || size < 1e-3 ? value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e") : String(Number(value.toPrecision(digits)));
  return text.replaceAll("-", "−");
};

// Multiples of 1, 2 or 5 times a power of ten, about `wanted` of them.
const ticks = (low, high, wanted) => {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(times => times * power).find(step => step >= rough * 0.999) ?? power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
};

// TensorBoard's smoothing: a moving average that starts without a bias towards zero.
const smoothed = (values, weight) => {
  if (weight === 0) return values;
  let [mean, share] = [0, 0];
  return values.map(value => {
    mean = mean * weight + (1 - weight) * value;
    share = share * weight + (1 - weight);
    return mean / share;
  });
};

const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

// What a metric's axis must show: shares from 0 to 1, rewards and margins their zero.
const domain = (metric, values) => {
  let low = Math.min(...values), high = Math.max(...values);
  if (/accurac/.test(metric) && low >= 0 && high <= 1) return [0, 1];
  if (/^(eval_)?(rewards|loss)\b/.test(metric) || low >= 0 && low < 0.4 * high) { low = Math.min(low, 0); high = Math.max(high, 0); }
  if (low === high) { const room = Math.abs(low) * 0.1 || 1; low -= room; high += room; }
  const room = (high - low) * 0.06;
  return [low === 0 ? 0 : low - room, high === 0 ? 0 : high + room];
};

// Moves labels apart so that each is readable; each stays as near to its line as that allows.
const apart = (labels, height, gap) => {
  labels.sort((a, b) => a.y - b.y);
  for (let i = 0; i < labels.length; i++) labels[i].at = Math.max(labels[i].y, i ? labels[i - 1].at + gap : 6);
  for (let i = labels.length - 1, most = height; i >= 0; i--) { labels[i].at = Math.min(labels[i].at, most); most = labels[i].at - gap; }
  return labels;
};

const shorten = (name, most) => name.length > most ? name.slice(0, most - 1) + "…" : name;

// Draws `lines` ([{name, style, steps, values, low, high}]) into `host`; gives what `readAt` needs.
const draw = (host, metric, lines, weight, extent) => {
  const width = Math.max(host.clientWidth, 200), height = 190;
  const longest = Math.max(0, ...lines.map(line => shorten(line.name, 14).length));
  const most = width < 300 ? 9 : 14;
  const edge = { left: 48, right: lines.length > 1 ? Math.min(longest, most) * 7.4 + 18 : 14, top: 8, bottom: 22 };
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, tabindex: 0, role: "img" });
  svg.setAttribute("aria-label", `${metric}: ${lines.map(line => `${line.name} from ${number(line.values[0])} to ${number(line.values.at(-1))}`).join("; ") || "nothing shown"}. Arrow keys read values.`);
  host.replaceChildren(svg);
  if (!lines.length) {
    svg.append(make("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "no run is shown"));
    return { svg, lines: [] };
  }
  const all = lines.flatMap(line => [...(weight ? [] : line.low), ...(weight ? [] : line.high), ...line.values]);
  const [low, high] = domain(metric, all);
  const [first, last] = extent[0] === extent[1] ? [extent[0] - 1, extent[1] + 1] : extent;
  const x = step => edge.left + (step - first) / (last - first) * (width - edge.left - edge.right);
  const y = value => edge.top + (high - value) / (high - low) * (height - edge.top - edge.bottom);
  for (const tick of ticks(low, high, 4)) {
    const zero = tick === 0 && low < 0;
    svg.append(make("line", { class: zero ? "zero" : "grid", x1: edge.left, x2: width - edge.right, y1: y(tick), y2: y(tick) }));
    svg.append(make("text", { x: edge.left - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick)));
  }
  for (const tick of ticks(first, last, Math.max(2, Math.floor(width / 75)))) {
    if (tick % 1) continue;
    svg.append(make("text", { x: x(tick), y: height - 6, "text-anchor": "middle" }, tick >= 10000 ? number(tick / 1000) + "k" : number(tick)));
  }
  svg.append(make("text", { x: edge.left - 6, y: height - 6, "text-anchor": "end" }, "step"));
  const labels = [];
  const drawn = lines.map(line => {
    const shown = smoothed(line.values, weight);
    const group = make("g", { class: `s${line.style % 6}` });
    const points = line.steps.map((step, i) => [x(step), y(shown[i])]);
    if (line.low.length && !weight) {
      const above = line.steps.map((step, i) => [x(step), y(line.high[i])]);
      const below = line.steps.map((step, i) => [x(step), y(line.low[i])]).reverse();
      group.append(make("path", { class: "band", d: path(above.concat(below)) + "Z" }));
    }
    if (weight) group.append(make("path", { class: "curve raw", d: path(line.steps.map((step, i) => [x(step), y(line.values[i])])) }));
    group.append(make("path", { class: `curve d${line.style % 7}`, d: path(points) }));
    // Markers about every sixth of the width, shifted per line so that they do not hide each other.
    const every = Math.max(1, Math.round(points.length / 6));
    points.forEach(([px, py], i) => {
      if (i === points.length - 1 || i % every === Math.floor(every * (line.style % 4) / 4)) group.append(make("use", { class: "mark", href: `#m${line.style % 5}`, x: px, y: py }));
    });
    svg.append(group);
    const [px, py] = points.at(-1);
    labels.push({ y: py + 4, px, line, group });
    return { ...line, shown };
  });
  if (lines.length > 1) for (const { at, y: own, px, line, group } of apart(labels, height - edge.bottom, 13)) {
    const tx = width - edge.right + 10;
    if (Math.abs(at - own) > 3 || tx - px > 14) group.append(make("path", { class: "leader", d: `M${px + 4} ${own - 4}L${tx - 2} ${at - 4}` }));
    group.append(make("text", { class: "end", x: tx, y: at }, shorten(line.name, most)));
  }
  const cross = make("line", { class: "cross", y1: edge.top, y2: height - edge.bottom, visibility: "hidden" });
  svg.append(cross);
  const stepAt = px => first + (px - edge.left) / (width - edge.left - edge.right) * (last - first);
  return { svg, lines: drawn, cross, x, stepAt };
};

// The index of the logged step that is nearest to `step`.
const nearest = (steps, step) => {
  let [low, high] = [0, steps.length - 1];
  while (low < high) { const middle = (low + high) >> 1; if (steps[middle] < step) low = middle + 1; else high = middle; }
  return low > 0 && step - steps[low - 1] <= steps[low] - step ? low - 1 : low;
};
