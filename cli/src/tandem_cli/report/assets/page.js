// SPDX-License-Identifier: Apache-2.0
"use strict";

const RUNS = JSON.parse(document.getElementById("data").textContent);
const comparing = RUNS.length > 1;
const USES = ["rollout", "train", "release", "handoff", "barrier", "tail", "checkpoint", "recovery", "start"];
const MOST_PODS = 32;

/** [[iteration, value]] of one column of a run's metrics, where it was measured. */
function column(run, name) {
  return run.metrics.filter((row) => typeof row[name] === "number").map((row) => [row.iteration, row[name]]);
}

/** The mean of the points around each point. */
function smoothed(points) {
  const reach = Math.max(2, Math.round(points.length / 24));
  return points.map(([at], index) => {
    const near = points.slice(Math.max(0, index - reach), index + reach + 1);
    return [at, near.reduce((sum, [, value]) => sum + value, 0) / near.length];
  });
}

/** Lines of a column that is noisy from one iteration to the next: each value faint, their running mean strong. */
function noisy(run, number, name, label, colour = `run-${number}`) {
  const points = column(run, name);
  const text = comparing ? run.label : label;
  if (points.length < 12) return [{ name: text, colour, points, dots: true, label: comparing ? "" : text }];
  const raw = { name: `${text}`, colour, points, faint: true };
  return [raw, { name: `${text}, running mean`, colour, points: smoothed(points), label: comparing ? "" : text }];
}

/** A column as one line; the second of two lines of a run is told by its colour, or dashed when runs are compared. */
function plain(run, number, name, label, second = false) {
  return {
    name: comparing ? `${run.label} ${label}` : label,
    label: comparing ? "" : label,
    colour: comparing || !second ? `run-${number}` : "second",
    dashed: comparing && second,
    points: column(run, name),
  };
}

function lastAccuracy(run) {
  const points = column(run, "evalAccuracy");
  return points.length ? format.percent(points.at(-1)[1]) : "";
}

const each = (make) => RUNS.flatMap((run, number) => make(run, number));

/** A line chart; of two runs, with a legend instead of their names at the lines, which would take half of a phone. */
function runsChart(parent, options) {
  const dashed = options.series.some((line) => line.dashed) ? [["sheet", "dashed: the longest or largest"]] : [];
  lineChart(parent, { ...options, keys: comparing ? [...RUNS.map((run, number) => [`run-${number}`, run.label]), ...dashed] : [] });
}

function learningCharts(parent) {
  runsChart(parent, {
    title: "Held-out accuracy",
    about: "Share of held-out prompts answered correctly, by the weights after so many iterations.",
    series: each((run, number) => [{ ...plain(run, number, "evalAccuracy", "held-out"), dots: true, label: lastAccuracy(run) }]),
    yFormat: (value) => `${Number((100 * value).toFixed(1))}`, tipFormat: format.percent, yUnit: "%", ceiling: 1,
  });
  runsChart(parent, {
    title: "Reward",
    about: "Mean reward of the responses of each batch, before shaping. With prioritised sampling it stays level by design.",
    series: each((run, number) => noisy(run, number, "rewardMean", "mean")),
  });
  runsChart(parent, {
    title: "Response length",
    about: "Generated tokens of a response: the mean of each batch, and its longest.",
    series: each((run, number) => [plain(run, number, "responseTokensMax", "max", true), plain(run, number, "responseTokensMean", "mean")]),
    yUnit: "tokens", floor: 0,
  });
  runsChart(parent, {
    title: "Engine and trainer log-probabilities",
    about: "Absolute difference of a sampled token's log-probability between engine and trainer. A growing one means broken weights.",
    series: each((run, number) => [plain(run, number, "logprobDiffMax", "max", true), plain(run, number, "logprobDiffMean", "mean")]),
    yUnit: "nats", logarithmic: true,
  });
}

function trainingCharts(parent) {
  runsChart(parent, {
    title: "Throughput",
    about: "Generated tokens per second of rollout.",
    series: each((run, number) => noisy(run, number, "tokensPerSecond", "mean")),
    yUnit: "tokens/s", floor: 0,
  });
  runsChart(parent, {
    title: "Gradient norm",
    about: "Norm of the gradient over all weights before clipping, mean of the iteration's updates.",
    series: each((run, number) => noisy(run, number, "gradNorm", "mean")),
    floor: 0,
  });
}

function timeCharts(parent, run) {
  const whose = comparing ? `${run.label}: ` : "";
  stackedColumns(parent, {
    title: `${whose}where the time goes`.replace(/^w/, "W"),
    about: "Seconds of each iteration by phase. Release and handoff are the price of sharing the accelerators.",
    names: PHASES,
    rows: run.metrics.filter((row) => Object.keys(row.phaseSeconds ?? {}).length).map((row) => ({ iteration: row.iteration, parts: lowerCase(row.phaseSeconds) })),
  });
  spreadBars(parent, {
    title: `${whose}steps of a switch`.replace(/^s/, "S"),
    about: "Median seconds of the slowest pod; the line spans the 10th to the 90th percentile.",
    groups: switchSteps(run),
  });
}

/** What the accelerators of each pod were held for; of many pods, of all together. */
function useBars(parent, run) {
  const pods = Object.entries(run.uses).map(([index, parts]) => ({ name: `pod ${index}`, parts }));
  const all = { name: "all pods", parts: {} };
  for (const { parts } of pods) for (const [name, seconds] of Object.entries(parts)) all.parts[name] = (all.parts[name] ?? 0) + seconds;
  shareBars(parent, {
    title: comparing ? `${run.label}: what the accelerators were held for` : "What the accelerators were held for",
    about: "Share of the time for which a pod held its accelerators. Rollout and train are work; barrier and tail are waits for the others.",
    rows: pods.length > 1 && pods.length <= MOST_PODS ? [all, ...pods] : [all],
    names: USES,
  });
}

const lowerCase = (parts) => Object.fromEntries(Object.entries(parts).map(([name, value]) => [name.toLowerCase(), value]));

/** Steps of release and of handoff in the order in which they begin, with their seconds in every iteration. */
function switchSteps(run) {
  const phaseOf = new Map();
  const delays = new Map();
  for (const row of run.timeline) {
    const phase = row.phase.toLowerCase();
    if (phase !== "release" && phase !== "handoff") continue;
    for (const step of row.steps ?? []) {
      phaseOf.set(step.name, phase);
      delays.set(step.name, [...(delays.get(step.name) ?? []).slice(-99), step.start - row.start]);
    }
  }
  const seconds = new Map();
  for (const row of run.metrics) for (const [name, value] of Object.entries(row.switchSteps ?? {})) seconds.set(name, [...(seconds.get(name) ?? []), value]);
  const known = [...phaseOf.keys()].sort((a, b) => median(delays.get(a)) - median(delays.get(b)));
  const order = [...known, ...[...seconds.keys()].filter((name) => !phaseOf.has(name))];
  const groups = [["release", "to the trainer"], ["handoff", "to the engine"], [undefined, "switch"]].map(([phase, name]) => ({
    name,
    colour: phase ?? "start",
    total: phase && median(run.metrics.map((row) => lowerCase(row.phaseSeconds ?? {})[phase]).filter((value) => value !== undefined)),
    bars: order.filter((step) => phaseOf.get(step) === phase && seconds.has(step)).map((step) => ({ name: step, values: seconds.get(step) })),
  }));
  return groups.filter((group) => group.bars.length);
}

const median = (values) => (values.length ? quantile([...values].sort((a, b) => a - b), 0.5) : undefined);

function figuresTable(element) {
  const names = [...new Set(RUNS.flatMap((run) => run.metrics.flatMap(Object.keys)))].filter((name) => !["phaseSeconds", "switchSteps", "startedAt"].includes(name));
  element.addEventListener("toggle", () => {
    if (element.querySelector("table")) return;
    for (const run of RUNS) {
      const head = names.map((name) => `<th scope="col">${escaped(name)}</th>`).join("");
      const body = run.metrics.map((row) => `<tr>${names.map((name) => `<td>${typeof row[name] === "number" ? format.number(row[name]) : ""}</td>`).join("")}</tr>`);
      element.insertAdjacentHTML("beforeend", `<div class="scroll" tabindex="0"><table><caption>${escaped(run.label)}</caption><thead><tr>${head}</tr></thead><tbody>${body.join("")}</tbody></table></div>`);
    }
  });
}

const charts = document.getElementById("charts");
learningCharts(charts);
for (const run of RUNS) timeCharts(charts, run);
for (const run of RUNS) useBars(charts, run);
trainingCharts(charts);
for (const run of RUNS) new Timeline(document.getElementById("timelines"), comparing ? `Timeline of ${run.label}` : "Timeline", run.timeline);
figuresTable(document.getElementById("figures"));
