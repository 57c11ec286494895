// SPDX-License-Identifier: Apache-2.0
"use strict";

/** A card with a title, a sentence about what is shown, and room for a chart. */
function chartCard(parent, title, about, wide = false) {
  const card = document.createElement("article");
  card.className = wide ? "chart wide" : "chart";
  card.innerHTML = `<h2>${escaped(title)}</h2><p class="about">${escaped(about)}</p>`;
  parent.append(card);
  return card;
}

function legend(card, items) {
  const list = document.createElement("ul");
  list.className = "legend";
  list.innerHTML = items
    .map(([colour, text]) => `<li><span class="key" style="background:var(--${colour})"></span>${escaped(text)}</li>`)
    .join("");
  card.append(list);
}

/** Calls draw(svg, width) now and whenever the card's width changes. */
function responsive(card, label, draw) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  card.append(svg);
  let last = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (width && width !== last) draw(svg, (last = width));
  }).observe(card);
  return svg;
}

const CHART_HEIGHT = 240;
const MARGIN = { top: 26, bottom: 34, left: 46 };

const COLUMN_RIGHT = 16;

/** Linear or logarithmic map of values to pixels. */
function scale([low, high], [from, to], logarithmic = false) {
  const map = logarithmic ? Math.log10 : (value) => value;
  const [a, b] = [map(low), map(high)];
  return (value) => from + ((map(value) - a) / (b - a || 1)) * (to - from);
}

/** The range of an axis: round at its ends, never empty. */
function niceRange(values, { floor, ceiling, logarithmic }) {
  let [low, high] = range(values);
  if (logarithmic) return [10 ** Math.floor(Math.log10(low)), 10 ** Math.ceil(Math.log10(high) + 1e-9)];
  if (high - low < 1e-12) [low, high] = [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(high) * 0.1 || 1)];
  low = Math.min(low, floor ?? low);
  const step = ticks(low, high, 4);
  const size = step.length > 1 ? step[1] - step[0] : high - low;
  low = Math.floor(low / size + 1e-9) * size;
  high = Math.ceil(high / size - 1e-9) * size;
  return [low, ceiling === undefined ? high : Math.min(ceiling, high)];
}

/** 0.001 -> 10⁻³, as SVG. */
function power(value) {
  const exponent = Math.round(Math.log10(value));
  return `10<tspan dy="-5" font-size="9">${String(exponent).replace("-", "−")}</tspan>`;
}

function axes(width, xRange, yRange, x, y, right, { yFormat, yUnit, logarithmic, alone }) {
  const bottom = CHART_HEIGHT - MARGIN.bottom;
  const parts = [];
  const yTicks = logarithmic
    ? Array.from({ length: Math.round(Math.log10(yRange[1] / yRange[0])) + 1 }, (_, i) => yRange[0] * 10 ** i)
    : ticks(yRange[0], yRange[1], 4);
  for (const value of yTicks) {
    parts.push(`<line class="grid" x1="${MARGIN.left}" x2="${width - right}" y1="${y(value)}" y2="${y(value)}"/>`);
    parts.push(`<text x="${MARGIN.left - 7}" y="${y(value) + 4}" text-anchor="end">${logarithmic ? power(value) : escaped(yFormat(value))}</text>`);
  }
  const [first, last] = alone === undefined ? xRange.map(Math.round) : [alone, alone];
  const apart = ((width - right - MARGIN.left) / (last - first || 1)) || 1;
  const whole = ticks(first, last, Math.max(2, (width - right) / 90)).filter((value) => Number.isInteger(value) && ((last - value) * apart > 30 || value === last));
  if (!whole.includes(last)) whole.push(last);
  for (const value of whole) {
    parts.push(`<text x="${x(value)}" y="${bottom + 17}" text-anchor="middle">${value.toLocaleString("en")}</text>`);
  }
  parts.push(`<line class="axis" x1="${MARGIN.left}" x2="${width - right}" y1="${bottom}" y2="${bottom}"/>`);
  parts.push(`<text x="${width - right}" y="${CHART_HEIGHT - 2}" text-anchor="end">iteration</text>`);
  if (yUnit) parts.push(`<text x="0" y="11">${escaped(yUnit)}</text>`);
  return parts.join("");
}

const shortened = (label) => (label.length > 16 ? `${label.slice(0, 15)}…` : label);

/** Labels at the ends of lines, moved apart where they would overlap. */
function endLabels(entries, limits) {
  const placed = entries.map((entry) => ({ ...entry })).sort((a, b) => a.y - b.y);
  for (let i = 1; i < placed.length; i++) placed[i].y = Math.max(placed[i].y, placed[i - 1].y + 15);
  for (let i = placed.length - 1; i >= 0; i--) {
    const below = i === placed.length - 1 ? limits[1] : placed[i + 1].y - 15;
    placed[i].y = Math.min(placed[i].y, below);
  }
  return placed
    .map(({ x, y, colour, text }) => `<text class="label" x="${x}" y="${y + 4}" style="fill:var(--${colour})">${escaped(text)}</text>`)
    .join("");
}

/**
 * Lines over iterations. A series: {name, colour, points: [[iteration, value]], faint, dots, dashed, label}; keys are
 * [colour, text] of a legend.
 * Pointer and arrow keys move a cursor that tells the values.
 */
function lineChart(parent, { title, about, series, yFormat = format.number, tipFormat = yFormat, yUnit, floor, ceiling, logarithmic, keys = [] }) {
  const card = chartCard(parent, title, about);
  const shown = series.filter((line) => line.points.length);
  if (!shown.length) {
    card.insertAdjacentHTML("beforeend", `<p class="empty">Nothing was measured yet.</p>`);
    return;
  }
  const values = shown.flatMap((line) => line.points.map(([, value]) => value)).filter((value) => !logarithmic || value > 0);
  const iterations = [...new Set(shown.flatMap((line) => line.points.map(([at]) => at)))].sort((a, b) => a - b);
  const logs = logarithmic && values.length > 0;
  const yRange = niceRange(values.length ? values : [0], { floor, ceiling, logarithmic: logs });
  const xRange = iterations.length > 1 ? range(iterations) : [iterations[0] - 1, iterations[0] + 1];
  const alone = iterations.length === 1 ? iterations[0] : undefined;
  const named = shown.filter((line) => line.label);
  if (keys.length) legend(card, keys);
  const at = new Map(shown.map((line) => [line, new Map(line.points)]));
  let geometry = null;

  const svg = responsive(card, summary(title, shown, tipFormat), (element, width) => {
    const right = 14 + Math.max(0, ...named.map((line) => shortened(line.label).length)) * 7;
    const x = scale(xRange, [MARGIN.left + 4, width - right - 6]);
    const y = scale(yRange, [CHART_HEIGHT - MARGIN.bottom, MARGIN.top], logs);
    geometry = { x, y, width };
    element.setAttribute("viewBox", `0 0 ${width} ${CHART_HEIGHT}`);
    element.setAttribute("height", CHART_HEIGHT);
    const body = shown.map((line) => drawLine(line, x, y, logs)).join("");
    const labels = endLabels(
      named.map((line) => {
        const [, value] = line.points.at(-1);
        return { x: width - right + 2, y: y(logs ? Math.max(value, yRange[0]) : value), colour: line.colour, text: shortened(line.label) };
      }),
      [MARGIN.top, CHART_HEIGHT - MARGIN.bottom - 2],
    );
    const grid = axes(width, xRange, yRange, x, y, right, { yFormat, yUnit, logarithmic: logs, alone });
    element.innerHTML = `${grid}${body}${labels}<g class="marks"></g>`;
  });
  follow(svg, iterations, (iteration, clientX, clientY) => {
    if (iteration === null || !geometry) return mark(svg, "");
    const { x, y } = geometry;
    const rows = [];
    let dots = `<line class="cursor" x1="${x(iteration)}" x2="${x(iteration)}" y1="${MARGIN.top}" y2="${CHART_HEIGHT - MARGIN.bottom}"/>`;
    for (const line of shown) {
      const value = at.get(line).get(iteration);
      if (value === undefined) continue;
      rows.push([`var(--${line.colour})`, line.name, tipFormat(value)]);
      if (!logs || value > 0) dots += `<circle cx="${x(iteration)}" cy="${y(value)}" r="4" fill="var(--${line.colour})" stroke="var(--sheet)" stroke-width="1.5"/>`;
    }
    mark(svg, dots);
    tooltip.show(clientX ?? pageX(svg, x(iteration)), clientY ?? pageY(svg), `Iteration ${iteration}`, rows);
  }, () => geometry);
}

function drawLine({ points, colour, faint, dots, dashed }, x, y, logs) {
  const drawn = logs ? points.filter(([, value]) => value > 0) : points;
  const path = drawn.map(([at, value], index) => `${index ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const style = `fill="none" stroke="var(--${colour})" stroke-width="${faint ? 1 : 2}" ${faint ? 'opacity=".38"' : ""} ${dashed ? 'stroke-dasharray="6 4"' : ""} stroke-linejoin="round"`;
  const marks = dots || drawn.length === 1 ? drawn.map(([at, value]) => `<circle cx="${x(at).toFixed(1)}" cy="${y(value).toFixed(1)}" r="${drawn.length > 60 ? 2 : 3}" fill="var(--${colour})"/>`).join("") : "";
  return `<path d="${path}" ${style}/>${marks}`;
}

function summary(title, lines, tell) {
  const ends = lines.map(({ name, points }) => {
    const [[first, before], [last, after]] = [points[0], points.at(-1)];
    return `${name} from ${tell(before)} at iteration ${first} to ${tell(after)} at iteration ${last}`;
  });
  return `${title}: ${ends.join("; ")}`;
}

const mark = (svg, content) => {
  const marks = svg.querySelector(".marks");
  if (marks) marks.innerHTML = content;
};
const pageX = (svg, x) => svg.getBoundingClientRect().left + x;
const pageY = (svg) => svg.getBoundingClientRect().top + CHART_HEIGHT / 2;

/** Calls tell(iteration, x, y) for the iteration under the pointer, or the one that the arrow keys chose. */
function follow(svg, iterations, tell, geometry) {
  svg.tabIndex = 0;
  let chosen = iterations.length - 1;
  svg.addEventListener("pointermove", (event) => {
    if (!geometry()) return;
    const left = event.clientX - svg.getBoundingClientRect().left;
    chosen = nearest(iterations, (value) => geometry().x(value), left);
    tell(iterations[chosen], event.clientX, event.clientY);
  });
  const leave = () => (tell(null), tooltip.hide());
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    chosen = Math.max(0, Math.min(iterations.length - 1, chosen + step));
    tell(iterations[chosen]);
  });
}

function nearest(values, place, target) {
  let [low, high] = [0, values.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (place(values[middle]) < target) low = middle;
    else high = middle;
  }
  return target - place(values[low]) <= place(values[high]) - target ? low : high;
}

/** One stacked column an iteration. rows: [{iteration, parts: {name: seconds}}]; names give the order from below. */
function stackedColumns(parent, { title, about, rows, names }) {
  const card = chartCard(parent, title, about);
  if (!rows.length) {
    card.insertAdjacentHTML("beforeend", `<p class="empty">No iteration has ended yet.</p>`);
    return;
  }
  const totals = Object.fromEntries(names.map((name) => [name, rows.reduce((sum, row) => sum + (row.parts[name] ?? 0), 0)]));
  const whole = Object.values(totals).reduce((sum, value) => sum + value, 0) || 1;
  const present = names.filter((name) => totals[name] > 0);
  legend(card, present.map((name) => [name, `${name} ${format.percent(totals[name] / whole)}`]));
  const heights = rows.map((row) => present.reduce((sum, name) => sum + (row.parts[name] ?? 0), 0));
  const sorted = [...heights].sort((a, b) => a - b);
  // One slow iteration must not flatten all others: columns far beyond the rest are cut and marked.
  const top = Math.min(sorted.at(-1), 2.5 * (quantile(sorted, 0.9) || sorted.at(-1))) || 1;
  const yRange = niceRange([0, top], { floor: 0 });
  const iterations = rows.map((row) => row.iteration);
  const xRange = [iterations[0] - 0.5, iterations.at(-1) + 0.5];
  let geometry = null;
  const label = `${title}: ${present.map((name) => `${name} ${format.percent(totals[name] / whole)}`).join(", ")}`;
  const svg = responsive(card, label, (element, width) => {
    const x = scale(xRange, [MARGIN.left + 4, width - COLUMN_RIGHT]);
    const y = scale(yRange, [CHART_HEIGHT - MARGIN.bottom, MARGIN.top]);
    geometry = { x, y };
    element.setAttribute("viewBox", `0 0 ${width} ${CHART_HEIGHT}`);
    element.setAttribute("height", CHART_HEIGHT);
    const each = Math.min(48, x(1) - x(0));
    const gap = each > 5 ? 1.5 : 0;
    const columns = present.map((name) => `<path d="${rows.map((row, i) => segment(row, name, x(iterations[i]), each - gap)).join("")}" fill="var(--${name})"/>`);
    function segment(row, name, middle, size) {
      let below = 0;
      for (const other of present) {
        if (other === name) break;
        below += row.parts[other] ?? 0;
      }
      const [low, high] = [Math.min(below, yRange[1]), Math.min(below + (row.parts[name] ?? 0), yRange[1])];
      if (high <= low) return "";
      const [from, to] = [y(low).toFixed(2), y(high).toFixed(2)];
      return `M${(middle - size / 2).toFixed(2)} ${from}h${size.toFixed(2)}V${to}h${(-size).toFixed(2)}z`;
    }
    const cut = rows.map((_, i) => (heights[i] > yRange[1] ? `<text x="${x(iterations[i])}" y="${MARGIN.top + 2}" text-anchor="middle">▲</text>` : "")).join("");
    const unit = { yFormat: format.number, yUnit: "s", alone: iterations.length === 1 ? iterations[0] : undefined };
    element.innerHTML = `${axes(width, [iterations[0], iterations.at(-1)], yRange, x, y, COLUMN_RIGHT, unit)}${columns.join("")}${cut}<g class="marks"></g>`;
  });
  follow(svg, iterations, (iteration, clientX, clientY) => {
    if (iteration === null || !geometry) return mark(svg, "");
    const row = rows[iterations.indexOf(iteration)];
    const { x } = geometry;
    mark(svg, `<line class="cursor" x1="${x(iteration)}" x2="${x(iteration)}" y1="${MARGIN.top}" y2="${CHART_HEIGHT - MARGIN.bottom}"/>`);
    const parts = present.filter((name) => row.parts[name]).reverse();
    const total = parts.reduce((sum, name) => sum + row.parts[name], 0);
    const lines = parts.map((name) => [`var(--${name})`, name, format.seconds(row.parts[name])]);
    tooltip.show(clientX ?? pageX(svg, x(iteration)), clientY ?? pageY(svg), `Iteration ${iteration}`, [...lines, [null, "together", format.seconds(total)]]);
  }, () => geometry);
}

/** Horizontal bars of medians with the middle 80 % as a line. groups: [{name, colour, bars: [{name, values}]}]. */
function spreadBars(parent, { title, about, groups }) {
  const card = chartCard(parent, title, about);
  const bars = groups.flatMap((group) => group.bars.map((bar) => ({ ...bar, group, sorted: [...bar.values].sort((a, b) => a - b) })));
  if (!bars.length) {
    card.insertAdjacentHTML("beforeend", `<p class="empty">The accelerators have not changed hands yet.</p>`);
    return;
  }
  legend(card, groups.map((group) => [group.colour, `${group.name}${group.total === undefined ? "" : ` ${format.seconds(group.total)}`}`]));
  const most = Math.max(...bars.map((bar) => quantile(bar.sorted, 0.9))) || 1;
  const row = 26;
  const text = bars.map((bar) => `${bar.name} ${format.seconds(quantile(bar.sorted, 0.5))}`).join(", ");
  const svg = responsive(card, `${title}: median ${text}`, (element, width) => {
    const name = 12 + Math.max(...bars.map((bar) => bar.name.length)) * 6.8;
    const x = scale([0, most], [name, width - 70]);
    const height = bars.length * row + 4;
    element.setAttribute("viewBox", `0 0 ${width} ${height}`);
    element.setAttribute("height", height);
    element.innerHTML = bars.map((bar, index) => {
      const [low, middle, high] = [0.1, 0.5, 0.9].map((share) => quantile(bar.sorted, share));
      const y = index * row + row / 2;
      return `<g data-bar="${index}"><rect x="0" y="${y - row / 2}" width="${width}" height="${row}" fill="transparent"/>
        <text x="${name - 8}" y="${y + 4}" text-anchor="end">${escaped(bar.name)}</text>
        <rect x="${x(0)}" y="${y - 8}" width="${Math.max(1.5, x(middle) - x(0))}" height="16" rx="3" fill="var(--${bar.group.colour})"/>
        <line x1="${x(low)}" x2="${x(high)}" y1="${y}" y2="${y}" stroke="var(--ink)" stroke-width="1.5"/>
        <text class="label" x="${x(Math.max(high, middle)) + 8}" y="${y + 4}" style="fill:var(--ink)">${format.seconds(middle)}</text></g>`;
    }).join("");
  });
  svg.addEventListener("pointermove", (event) => {
    const found = event.target.closest("[data-bar]");
    if (!found) return tooltip.hide();
    const bar = bars[Number(found.dataset.bar)];
    const rows = [["median", 0.5], ["10th percentile", 0.1], ["90th percentile", 0.9], ["most", 1]].map(([label, share]) => [null, label, format.seconds(quantile(bar.sorted, share))]);
    tooltip.show(event.clientX, event.clientY, `${bar.group.name}: ${bar.name}`, rows);
  });
  svg.addEventListener("pointerleave", () => tooltip.hide());
}

/** A bar a row, each as long as the others, shared among its parts. rows: [{name, parts: {name: seconds}}]. */
function shareBars(parent, { title, about, rows, names }) {
  const card = chartCard(parent, title, about, true);
  const total = (row) => names.reduce((sum, name) => sum + (row.parts[name] ?? 0), 0);
  const shown = rows.filter((row) => total(row) > 0);
  if (!shown.length) {
    card.insertAdjacentHTML("beforeend", `<p class="empty">No phase has ended yet.</p>`);
    return;
  }
  const share = (row, name) => (row.parts[name] ?? 0) / total(row);
  const present = names.filter((name) => shown[0].parts[name] > 0);
  const told = present.map((name) => [name, `${name} ${format.percent(share(shown[0], name))}`]);
  legend(card, told);
  const height = 24;
  const svg = responsive(card, `${title}: ${told.map(([, text]) => text).join(", ")}`, (element, width) => {
    const left = 12 + Math.max(...shown.map((row) => row.name.length)) * 6.8;
    const x = scale([0, 1], [left, width]);
    element.setAttribute("viewBox", `0 0 ${width} ${shown.length * height}`);
    element.setAttribute("height", shown.length * height);
    element.innerHTML = shown.map((row, index) => {
      const top = index * height;
      let from = 0;
      const bars = names.map((name) => {
        const [start, end] = [x(from), x((from += share(row, name)))];
        return end > start ? `<rect x="${start.toFixed(2)}" y="${top + 3}" width="${(end - start).toFixed(2)}" height="${height - 6}" fill="var(--${name})"/>` : "";
      });
      return `<g data-row="${index}"><rect x="0" y="${top}" width="${width}" height="${height}" fill="transparent"/><text x="${left - 8}" y="${top + height / 2 + 4}" text-anchor="end">${escaped(row.name)}</text>${bars.join("")}</g>`;
    }).join("");
  });
  svg.addEventListener("pointermove", (event) => {
    const found = event.target.closest("[data-row]");
    if (!found) return tooltip.hide();
    const row = shown[Number(found.dataset.row)];
    const lines = names.filter((name) => row.parts[name] > 0).map((name) => [`var(--${name})`, name, `${format.percent(share(row, name))} · ${format.seconds(row.parts[name])}`]);
    tooltip.show(event.clientX, event.clientY, row.name, [...lines, [null, "held", format.seconds(total(row))]]);
  });
  svg.addEventListener("pointerleave", () => tooltip.hide());
}
