// SPDX-License-Identifier: Apache-2.0
"use strict";

const ROW_GAP = 3;
const AXIS_HEIGHT = 24;
const SHORTEST_SPAN = 0.05;
const NARROWEST_BAR = 2.5;
const COLUMN_WIDTH = 4;
const WAITING = "grid";
const LONGEST_GAP = 10;

/** One phase in the row of a pod, or of the job where index is undefined. Times in seconds of the run. */
function bar({ row, start, parts }, index) {
  const part = parts.get(index);
  const shift = start - row.start;
  return {
    phase: row.phase.toLowerCase(), title: row.phase, iteration: row.iteration,
    start, end: start + row.seconds,
    own: part ? [part.start + shift, part.start + part.seconds + shift] : null,
    solid: index === undefined || parts.size === 0,
    steps: (part?.steps ?? []).map((step) => ({ ...step, start: step.start + shift })),
  };
}

/**
 * The phases of the job and of each pod over time, on a canvas.
 *
 * A pod's own part of a phase is drawn solid; the rest of the phase, in which it waits for the others, pale. A phase
 * that pods do not report on (Rollout) is solid in every row. Only what is in view is drawn.
 */
class Timeline {
  constructor(parent, name, rows) {
    this.card = chartCard(parent, name, "Solid: a pod's own part of a phase. Pale: it waits for the others. From afar, columns show how the time is shared. Pauses are left out. Drag to move, Ctrl + wheel or pinch to zoom, + − 0 and arrow keys when focused.", true);
    if (!rows.some((row) => !Number.isInteger(row.index))) {
      this.card.insertAdjacentHTML("beforeend", `<p class="empty">No phase has ended yet.</p>`);
      return;
    }
    this.arrange(rows);
    this.build();
    this.listen();
    new ResizeObserver(([entry]) => this.resize(Math.round(entry.contentRect.width))).observe(this.canvas.parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recolour());
  }

  /**
   * Sort the rows into lanes of bars {phase, start, end, own: [from, to] or null, steps}, by start.
   *
   * Times are of the run itself: pauses, in which it was stopped, are left out. Epochs begin anew after a pause, so a
   * pod's part belongs to the phase of its epoch that is nearest in time.
   */
  arrange(rows) {
    const phases = rows.filter((row) => !Number.isInteger(row.index)).sort((a, b) => a.start - b.start);
    const ofEpoch = new Map();
    let [clock, last] = [0, phases[0].start];
    for (const row of phases) {
      const gap = row.start - last;
      clock += gap > LONGEST_GAP ? 0 : gap;
      const entry = { row, start: clock, parts: new Map() };
      ofEpoch.set(row.epoch, [...(ofEpoch.get(row.epoch) ?? []), entry]);
      clock += row.seconds;
      last = row.start + row.seconds;
    }
    for (const part of rows.filter((row) => Number.isInteger(row.index))) {
      const far = (entry) => Math.abs(entry.row.start - part.start);
      const nearest = (ofEpoch.get(part.epoch) ?? []).reduce((best, entry) => (best && far(best) <= far(entry) ? best : entry), null);
      nearest?.parts.set(part.index, part);
    }
    const entries = [...ofEpoch.values()].flat().sort((a, b) => a.start - b.start);
    const pods = [...new Set(entries.flatMap((entry) => [...entry.parts.keys()]))].sort((a, b) => a - b);
    const lane = (name, index) => ({ name, bars: entries.map((entry) => bar(entry, index)) });
    this.lanes = [lane("job"), ...pods.map((index) => lane(`pod ${index}`, index))];
    this.end = Math.max(...entries.map((entry) => entry.start + entry.row.seconds), SHORTEST_SPAN);
    this.view = [0, this.end];
    this.present = [...new Set(phases.map((row) => row.phase))];
  }

  build() {
    const tools = document.createElement("div");
    tools.className = "tools";
    legend(tools, this.present.map((phase) => [phase.toLowerCase(), phase.toLowerCase()]));
    const buttons = document.createElement("div");
    buttons.className = "buttons";
    tools.append(buttons);
    const actions = { "−": ["Zoom out", () => this.zoom(2)], "+": ["Zoom in", () => this.zoom(0.5)], "‹": ["Earlier", () => this.pan(-0.5)], "›": ["Later", () => this.pan(0.5)], All: ["Show everything", () => this.show(0, this.end)] };
    for (const [text, [label, action]] of Object.entries(actions)) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.setAttribute("aria-label", label);
      button.addEventListener("click", action);
      buttons.append(button);
    }
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `Phases of ${this.lanes.length - 1} pods over ${format.seconds(this.end)}`);
    const frame = document.createElement("div");
    frame.append(this.canvas);
    this.card.append(tools, frame);
    this.rowHeight = this.lanes.length > 24 ? 14 : 22;
    this.left = 12 + Math.max(...this.lanes.map((lane) => lane.name.length)) * 7;
  }

  listen() {
    const { canvas } = this;
    const pointers = new Map();
    canvas.addEventListener("wheel", (event) => {
      if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        this.zoom(Math.exp(event.deltaY / 200), this.timeAt(event.offsetX));
      } else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        event.preventDefault();
        this.pan(event.deltaX / this.plotWidth);
      }
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, event.offsetX);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!pointers.has(event.pointerId)) return this.tell(event);
      this.drag(pointers, event);
      if (event.pointerType === "touch") this.tell(event);
    });
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => pointers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => tooltip.hide());
    canvas.addEventListener("dblclick", (event) => this.zoom(0.25, this.timeAt(event.offsetX)));
    canvas.addEventListener("keydown", (event) => {
      const action = { ArrowLeft: () => this.pan(-0.1), ArrowRight: () => this.pan(0.1), "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2), 0: () => this.show(0, this.end) }[event.key];
      if (!action || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      action();
    });
  }

  /** One pointer moves the view; two stretch it. */
  drag(pointers, event) {
    const before = pointers.get(event.pointerId);
    if (pointers.size === 1) {
      this.pan((before - event.offsetX) / this.plotWidth);
    } else {
      const [, other] = [...pointers].find(([id]) => id !== event.pointerId);
      const [was, now] = [Math.abs(before - other), Math.abs(event.offsetX - other)];
      if (was > 4 && now > 4) this.zoom(was / now, this.timeAt((event.offsetX + other) / 2));
    }
    pointers.set(event.pointerId, event.offsetX);
  }

  get plotWidth() {
    return this.width - this.left - 8;
  }
  timeAt(x) {
    return this.view[0] + ((x - this.left) / this.plotWidth) * (this.view[1] - this.view[0]);
  }
  pan(share) {
    const by = share * (this.view[1] - this.view[0]);
    this.show(this.view[0] + by, this.view[1] + by);
  }
  zoom(factor, around = (this.view[0] + this.view[1]) / 2) {
    this.show(around - (around - this.view[0]) * factor, around + (this.view[1] - around) * factor);
  }

  show(from, to) {
    const span = Math.min(this.end, Math.max(SHORTEST_SPAN, to - from));
    const start = Math.max(0, Math.min(this.end - span, from));
    this.view = [start, start + span];
    tooltip.hide();
    this.schedule();
  }

  resize(width) {
    if (!width || width === this.width) return;
    this.width = width;
    this.height = this.lanes.length * (this.rowHeight + ROW_GAP) + AXIS_HEIGHT;
    const ratio = devicePixelRatio || 1;
    this.canvas.width = width * ratio;
    this.canvas.height = this.height * ratio;
    this.canvas.style.height = `${this.height}px`;
    this.recolour();
  }

  recolour() {
    const names = ["ink", "soft", "grid", "sheet", ...new Set(this.lanes[0].bars.map((bar) => bar.phase))];
    this.colours = Object.fromEntries(names.map((name) => [name, cssColour(name) || cssColour("start")]));
    this.draw();
  }

  schedule() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    const began = performance.now();
    const context = this.canvas.getContext("2d");
    const ratio = devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    this.drawAxis(context);
    this.lanes.forEach((lane, number) => this.drawLane(context, lane, number * (this.rowHeight + ROW_GAP)));
    this.canvas.dataset.drawMilliseconds = (performance.now() - began).toFixed(1);
  }

  drawAxis(context) {
    const [from, to] = this.view;
    const bottom = this.height - AXIS_HEIGHT;
    const short = to - from < 10;
    for (const time of clockTicks(from, to, Math.max(2, this.plotWidth / 110))) {
      const x = this.place(time);
      context.fillStyle = this.colours.grid;
      context.fillRect(x, 0, 1, bottom);
      context.fillStyle = this.colours.soft;
      context.textAlign = "center";
      context.fillText(short ? `${Number(time.toFixed(2))} s` : format.clock(time), x, bottom + 14);
    }
  }

  place(time) {
    return this.left + ((time - this.view[0]) / (this.view[1] - this.view[0])) * this.plotWidth;
  }

  drawLane(context, lane, top) {
    context.fillStyle = this.colours.soft;
    context.textAlign = "left";
    context.fillText(lane.name, 0, top + this.rowHeight / 2);
    context.save();
    context.beginPath();
    context.rect(this.left, top, this.plotWidth, this.rowHeight);
    context.clip();
    const seen = lane.bars.slice(firstEndingAfter(lane.bars, this.view[0]), firstEndingAfter(lane.bars, this.view[1]) + 1);
    if (this.plotWidth / seen.length < NARROWEST_BAR) this.drawShares(context, seen, top);
    else for (const bar of seen) this.drawBar(context, bar, top);
    context.restore();
  }

  /** Too many phases to see each: narrow columns that show how each bit of time was shared among them. */
  drawShares(context, bars, top) {
    // A column spans two iterations or so: narrower ones would show where they cut an iteration, not how it is shared.
    const width = Math.max(COLUMN_WIDTH, (8 * this.plotWidth) / bars.length);
    const perColumn = (width / this.plotWidth) * (this.view[1] - this.view[0]);
    const columns = new Map();
    const add = (from, to, kind) => {
      for (let at = Math.max(from, this.view[0]); at < Math.min(to, this.view[1]); ) {
        const number = Math.floor((at - this.view[0]) / perColumn + 1e-9);
        const until = Math.min(to, this.view[0] + (number + 1) * perColumn);
        const column = columns.get(number) ?? columns.set(number, new Map()).get(number);
        column.set(kind, (column.get(kind) ?? 0) + until - at);
        if (until <= at) break;
        at = until;
      }
    };
    for (const bar of bars) {
      const [from, to] = bar.solid ? [bar.start, bar.end] : (bar.own ?? [bar.start, bar.start]);
      add(from, Math.min(to, bar.end), bar.phase);
      add(bar.start, from, WAITING);
      add(to, bar.end, WAITING);
    }
    for (const [number, column] of columns) {
      let bottom = top + this.rowHeight;
      const whole = [...column.values()].reduce((sum, value) => sum + value, 0);
      for (const kind of [...PHASES, WAITING]) {
        const height = ((column.get(kind) ?? 0) / whole) * this.rowHeight;
        if (!height) continue;
        context.fillStyle = this.colours[kind] ?? this.colours.start;
        context.fillRect(this.left + number * width, bottom - height, width + 0.3, height);
        bottom -= height;
      }
    }
  }

  drawBar(context, bar, top) {
    const [x, end] = [this.place(bar.start), this.place(bar.end)];
    const fill = (from, to, alpha) => {
      context.globalAlpha = alpha;
      context.fillRect(from, top, Math.max(0.6, to - from - (to - from > 4 ? 0.5 : 0)), this.rowHeight);
      context.globalAlpha = 1;
    };
    context.fillStyle = this.colours[bar.phase];
    if (bar.solid) {
      fill(x, end, 1);
      return this.write(context, bar.title, x, end, top);
    }
    fill(x, end, 0.28);
    if (!bar.own) return;
    const [from, to] = bar.own.map((time) => this.place(time));
    fill(from, to, 1);
    if (to - from > 60) this.drawSteps(context, bar, top);
  }

  drawSteps(context, bar, top) {
    for (const step of bar.steps) {
      const from = this.place(step.start);
      const to = this.place(step.start + step.seconds);
      if (to - from < 3) continue;
      context.fillStyle = this.colours.sheet;
      context.fillRect(from, top, 1, this.rowHeight);
      this.write(context, step.name, from, to, top);
    }
  }

  /** A label within a bar, in the part of it that is in view. */
  write(context, text, from, to, top) {
    const [left, right] = [Math.max(from, this.left), Math.min(to, this.width - 8)];
    if (right - left < context.measureText(text).width + 10) return;
    context.fillStyle = this.colours.sheet;
    context.textAlign = "center";
    context.fillText(text, (left + right) / 2, top + this.rowHeight / 2 + 0.5);
  }

  /** The tooltip of what is under the pointer. */
  tell(event) {
    const lane = this.lanes[Math.floor(event.offsetY / (this.rowHeight + ROW_GAP))];
    const time = this.timeAt(event.offsetX);
    const bar = lane && event.offsetX >= this.left ? lane.bars[firstEndingAfter(lane.bars, time)] : null;
    if (!bar || bar.start > time) return tooltip.hide();
    const rows = [[`var(--${bar.phase})`, "whole phase", format.seconds(bar.end - bar.start)]];
    if (bar.own) {
      const own = bar.own[1] - bar.own[0];
      rows.push([null, "own part", format.seconds(own)], [null, "waiting", format.seconds(Math.max(0, bar.end - bar.start - own))]);
      rows.push(...bar.steps.map((step) => [null, step.name, format.seconds(step.seconds)]));
    }
    rows.push([null, "begins at", format.clock(bar.start)]);
    tooltip.show(event.clientX, event.clientY, `${lane.name}: ${bar.title}, iteration ${bar.iteration}`, rows);
  }
}

/** Ticks at round clock times. */
function clockTicks(from, to, count) {
  const rough = (to - from) / count;
  if (rough < 1) return ticks(from, to, count);
  const step = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400].find((size) => size >= rough) ?? 86400 * Math.ceil(rough / 86400);
  const found = [];
  for (let time = Math.ceil(from / step) * step; time <= to; time += step) found.push(time);
  return found;
}

/** Index of the first bar that ends after a time; bars follow each other. */
function firstEndingAfter(bars, time) {
  let [low, high] = [0, bars.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (bars[middle].end <= time) low = middle + 1;
    else high = middle;
  }
  return low;
}
