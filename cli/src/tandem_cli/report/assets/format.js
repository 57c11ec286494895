// SPDX-License-Identifier: Apache-2.0
"use strict";

/** The phases in the order of an iteration, by the names of their colours. */
const PHASES = ["start", "recover", "warmup", "rollout", "release", "train", "handoff", "suspended"];

/** Numbers as people read them. */
const format = {
  /** Three significant digits, thousands separated: 0.00312, 31.2, 3,120. */
  number(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6) return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value);
    if (size < 1e-3) return value.toExponential(1).replace("e-", "e−").replace(/^-/, "−");
    const options = size >= 100 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 3 };
    return new Intl.NumberFormat("en", options).format(value).replace("-", "−");
  },
  percent(share) {
    return `${(100 * share).toFixed(1)} %`;
  },
  /** 0.24 -> "240 ms", 3.2 -> "3.2 s", 75 -> "1 min 15 s", 3700 -> "1 h 2 min". */
  seconds(value) {
    if (value < 0.0005) return `${Math.round(value * 1e6)} µs`;
    if (value < 0.9995) return `${Number((1000 * value).toPrecision(3))} ms`;
    if (value < 59.95) return `${Number(value.toPrecision(3))} s`;
    const whole = Math.round(value);
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
    return `${Math.floor(whole / 3600)} h ${Math.round((whole % 3600) / 60)} min`;
  },
  /** An axis of seconds: one unit for all ticks. */
  clock(value) {
    const whole = Math.round(Math.abs(value));
    const parts = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60];
    const [hours, minutes, seconds] = parts.map((part) => String(part).padStart(2, "0"));
    return parts[0] ? `${parts[0]}:${minutes}:${seconds}` : `${parts[1]}:${seconds}`;
  },
};

const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const cssColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const range = (values) => [Math.min(...values), Math.max(...values)];

function quantile(sorted, share) {
  const place = share * (sorted.length - 1);
  const low = Math.floor(place);
  return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

/** Round tick values that cover [low, high] in about `count` steps. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) ?? 10);
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index++) {
    found.push(Number((index * step).toPrecision(12)));
  }
  return found;
}

const tooltip = {
  element: document.getElementById("tooltip"),
  /** Show rows of [colour or null, name, value] at a point of the window. */
  show(x, y, title, rows) {
    const cells = rows.map(([colour, name, value]) => {
      const key = colour ? `<span class="key" style="background:${colour}"></span>` : "";
      return `<tr><td>${key}${escaped(name)}</td><td>${escaped(value)}</td></tr>`;
    });
    this.element.innerHTML = `<strong>${escaped(title)}</strong><table>${cells.join("")}</table>`;
    this.element.hidden = false;
    const { width, height } = this.element.getBoundingClientRect();
    const left = x + 16 + width > innerWidth ? x - width - 16 : x + 16;
    this.element.style.left = `${Math.max(4, left)}px`;
    this.element.style.top = `${Math.max(4, Math.min(y - height / 2, innerHeight - height - 4))}px`;
  },
  hide() {
    this.element.hidden = true;
  },
};
addEventListener("scroll", () => tooltip.hide(), { passive: true });
addEventListener("keydown", (event) => event.key === "Escape" && tooltip.hide());
