"use strict";
// Plots the charts of every .plots element from the JSON in it. Drag to zoom in, double-click to
// reset the zoom, and click a name in the legend to hide its curve. Headings of .sortable tables
// sort them, and .swatch buttons hide a run in all plots. Settings last until the tab is closed.
(() => {
  // Palette of Okabe and Ito for colour-blind readers.
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999"];
  const DASHES = [[], [6, 4], [2, 3]]; // For more curves than colours.
  const HEIGHT = 230;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });

  const formatters = {
    number: (v) => (v !== 0 && Math.abs(v) < 1e-3 ? v.toExponential(1) : +v.toPrecision(4) + ""),
    share: (v) => +(100 * v).toPrecision(4) + " %",
    rate: (v) => compact.format(v),
  };
  const formatValue = (unit) => (_, v) => (v == null ? "–" : formatters[unit](v));
  const cssColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

  function formatTime(seconds) {
    if (seconds < 60) return +seconds.toPrecision(3) + " s";
    const [h, m, s] = [seconds / 3600, (seconds / 60) % 60, seconds % 60].map(Math.floor);
    const pad = (v) => String(v).padStart(2, "0");
    return h ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
  }

  // The horizontal axes: position of a step of a run, and format of a position.
  const AXES = {
    step: { at: (_, step) => step, format: (v) => v.toLocaleString("en"), tick: (v) => compact.format(v) },
    epoch: { at: (run, step) => run.epochs * step, format: (v) => v.toFixed(2), tick: (v) => compact.format(v) },
    time: { at: (run, step) => interpolate(run.steps, run.seconds, step), format: formatTime, tick: formatTime },
  };

  function interpolate(xs, ys, x) {
    let i = xs.findIndex((v) => v >= x);
    if (i < 0) i = xs.length - 1;
    if (i === 0 || xs[i] === xs[i - 1]) return ys[i];
    return ys[i - 1] + ((x - xs[i - 1]) / (xs[i] - xs[i - 1])) * (ys[i] - ys[i - 1]);
  }

  // Settings of this page, kept while the tab is open so that a reload shows the same view.
  const KEY = "vit_jax " + location.pathname;
  const settings = { axis: "step", smoothing: 0, log: false, seeds: false, hidden: [], sort: {} };
  try { Object.assign(settings, JSON.parse(sessionStorage.getItem(KEY))); } catch { /* Not allowed. */ }
  function keep() {
    try { sessionStorage.setItem(KEY, JSON.stringify(settings)); } catch { /* Not allowed. */ }
  }

  // Exponential moving average without the bias of its start; gaps stay gaps.
  function smooth(values, weight) {
    let [sum, total] = [0, 0];
    return values.map((v) => {
      if (v == null) return v;
      [sum, total] = [weight * sum + (1 - weight) * v, weight * total + (1 - weight)];
      return sum / total;
    });
  }

  const colourOf = (place) => COLOURS[place % COLOURS.length];
  const dashOf = (place) => DASHES[Math.floor(place / COLOURS.length) % DASHES.length];

  // Returns curves { label, place, xs, ys, run } of a chart, smoothed; place determines the colour.
  function curvesOf(chart, runs) {
    return chart.series.map((series, i) => {
      const run = runs[series.run ?? 0];
      const steps = chart.steps.filter((_, k) => series.values[k] != null);
      const ys = series.values.filter((v) => v != null);
      return {
        label: series.label, place: series.run ?? i, run: series.run, seeds: run && run.seeds,
        xs: run ? steps.map((step) => AXES[settings.axis].at(run, step)) : steps,
        ys: smooth(ys, chart.smooths ? settings.smoothing : 0).map((v) => (settings.log && v <= 0 ? null : v)),
      };
    });
  }

  // Replaces the curves of runs that differ in their seed by their mean and deviation.
  function meanOverSeeds(curves) {
    const groups = Map.groupBy ? Map.groupBy(curves, (c) => c.seeds) : new Map();
    if (!Map.groupBy) curves.forEach((c) => groups.set(c.seeds, [...(groups.get(c.seeds) ?? []), c]));
    return [...groups].flatMap(([seeds, members]) => {
      if (seeds == null || members.length < 2) return members;
      const { label, place, xs } = members[0];
      const mean = { label: `${seeds} (mean of ${members.length})`, place, xs: [], ys: [] };
      const low = { ...mean, label, xs: [], ys: [], band: true };
      const high = { ...mean, label, xs: [], ys: [], band: true };
      const lookup = members.map((c) => new Map(c.xs.map((_, i) => [i, c.ys[i]])));
      xs.forEach((x, i) => {
        const values = lookup.map((map) => map.get(i)).filter((v) => v != null);
        if (values.length < 2) return;
        const average = values.reduce((a, b) => a + b) / values.length;
        const square = values.reduce((a, b) => a + (b - average) ** 2, 0) / (values.length - 1);
        [[mean, average], [low, average - Math.sqrt(square)], [high, average + Math.sqrt(square)]]
          .forEach(([curve, y]) => (curve.xs.push(x), curve.ys.push(settings.log && y <= 0 ? null : y)));
      });
      return [mean, high, low];
    });
  }

  function axis(values) {
    const line = { stroke: cssColour("--line"), width: 1 };
    return { stroke: cssColour("--muted"), grid: line, ticks: line, ...values };
  }

  function seriesOf(curve, unit) {
    return {
      label: curve.label,
      show: !settings.hidden.includes(curve.run),
      stroke: curve.band ? "transparent" : colourOf(curve.place),
      class: curve.band ? "band" : null,
      dash: dashOf(curve.place),
      width: 1.75,
      spanGaps: true,
      points: { show: !curve.band && curve.ys.length < 30, size: 5 },
      value: formatValue(unit),
    };
  }

  function plot(target, chart, group, runs) {
    let curves = curvesOf(chart, runs);
    if (settings.seeds) curves = meanOverSeeds(curves.filter((c) => !settings.hidden.includes(c.run)));
    const bands = curves.flatMap((curve, i) =>
      curve.band && curves[i + 1]?.band
        ? [{ series: [i + 1, i + 2], fill: colourOf(curve.place) + "33" }] : []);
    const { format, tick } = AXES[settings.axis];
    const options = {
      title: chart.title,
      width: target.clientWidth,
      height: HEIGHT,
      cursor: { sync: { key: group }, drag: { x: true, y: false } },
      scales: { x: { time: false }, y: { distr: settings.log ? 3 : 1 } },
      axes: [
        axis({ values: (_, ticks) => ticks.map((v) => (settings.axis !== "step" || Number.isInteger(v) ? tick(v) : "")) }),
        axis({ size: 64, values: (_, ticks) => ticks.map((v) => (v == null ? "" : formatters[chart.unit](v))) }),
      ],
      bands,
      series: [
        { label: settings.axis, value: (_, v) => (v == null ? "–" : format(v)) },
        ...curves.map((curve) => seriesOf(curve, chart.unit)),
      ],
    };
    const tables = curves.map((curve) => [curve.xs, curve.ys]);
    return new uPlot(options, tables.length ? uPlot.join(tables) : [[]], target);
  }

  function control(label, input, onInput) {
    const element = document.createElement("label");
    element.append(label + " ", input);
    const event = input.type === "range" ? "input" : "change";
    input.addEventListener(event, () => { onInput(); keep(); });
    return element;
  }

  function input(type, attributes) {
    return Object.assign(document.createElement("input"), { type, ...attributes });
  }

  function controlsOf(runs, redraw) {
    const bar = document.createElement("div");
    bar.className = "controls";
    const select = document.createElement("select");
    const available = { step: true, epoch: runs.every((run) => run.epochs), time: runs.every((run) => run.steps.length > 1) };
    for (const name of Object.keys(AXES)) {
      const title = available[name] ? "" : "not logged by every run";
      select.append(Object.assign(new Option(name), { disabled: !available[name], title }));
    }
    if (!available[settings.axis]) settings.axis = "step";
    select.value = settings.axis;
    const range = input("range", { min: 0, max: 0.99, step: 0.01, value: settings.smoothing });
    const shown = document.createElement("output");
    const showWeight = () => (shown.textContent = (+settings.smoothing).toFixed(2));
    const log = input("checkbox", { checked: settings.log });
    showWeight();
    bar.append(
      control("axis", select, () => { settings.axis = select.value; redraw(); }),
      control("smoothing", range, () => { settings.smoothing = +range.value; showWeight(); redraw(); }),
      shown,
      control("logarithmic", log, () => { settings.log = log.checked; redraw(); }),
    );
    if (runs.some((run) => run.seeds != null)) {
      const seeds = input("checkbox", { checked: settings.seeds });
      bar.append(control("mean over seeds", seeds, () => { settings.seeds = seeds.checked; redraw(); }));
    }
    return bar;
  }

  const redraws = [];
  for (const block of document.querySelectorAll(".plots")) {
    const { group, charts, runs } = JSON.parse(block.querySelector("script").textContent);
    const targets = [...block.querySelectorAll(".plot")];
    let plots = [];
    const redraw = () => {
      plots.forEach((each) => each.destroy());
      plots = charts.map((chart, i) => plot(targets[i], chart, group, runs));
    };
    if (charts.length && runs.length) block.before(controlsOf(runs, redraw));
    redraw();
    redraws.push(redraw);
    dark.addEventListener("change", redraw);
    new ResizeObserver(() => {
      plots.forEach((each, i) => {
        if (each.width !== targets[i].clientWidth) {
          each.setSize({ width: targets[i].clientWidth, height: HEIGHT });
        }
      });
    }).observe(block);
  }

  for (const button of document.querySelectorAll(".swatch")) {
    const place = +button.dataset.run;
    const paint = () => {
      const isHidden = settings.hidden.includes(place);
      button.style.borderColor = colourOf(place);
      const filled = dashOf(place).length ? 50 : 100; // Per cent: half for a dashed curve.
      button.style.background = isHidden ? "none"
        : `linear-gradient(90deg, ${colourOf(place)} ${filled}%, transparent ${filled}%)`;
      button.setAttribute("aria-pressed", isHidden);
    };
    button.addEventListener("click", () => {
      const { hidden } = settings;
      settings.hidden = hidden.includes(place) ? hidden.filter((v) => v !== place) : [...hidden, place];
      paint(); keep(); redraws.forEach((redraw) => redraw());
    });
    paint();
  }

  // Sorts the rows of a table by a column: numbers by value, other cells as text, unknown ones last.
  function sortBy(table, column, direction) {
    const key = (row) => {
      const cell = row.cells[column];
      const text = cell.dataset.value ?? cell.textContent.replaceAll(",", "");
      return text.trim() === "" ? null : cell.classList.contains("number") ? +text : text;
    };
    const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
    const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => (a == null) - (b == null) || (a == null ? 0 :
      direction * (typeof a === typeof b ? compare(a, b) : typeof a === "number" ? -1 : 1)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
    [...table.tHead.rows[0].cells].forEach((cell, i) =>
      cell.setAttribute("aria-sort", i !== column ? "none" : direction > 0 ? "ascending" : "descending"));
  }

  document.querySelectorAll("table.sortable").forEach((table, number) => {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const sort = () => {
        const direction = cell.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        settings.sort[number] = [column, direction];
        sortBy(table, column, direction);
        keep();
      };
      cell.tabIndex = 0;
      cell.addEventListener("click", sort);
      cell.addEventListener("keydown", (event) => event.key === "Enter" && sort());
    });
    const [column, direction] = settings.sort[number] ?? [];
    if (column < table.tHead.rows[0].cells.length) sortBy(table, column, direction);
  });

  const refresh = document.querySelector("main").dataset.refresh;
  if (refresh) setTimeout(() => location.reload(), 1000 * refresh);
})();
