"use strict";
// Plots the charts of every .plots element from the JSON in it. Drag to zoom in, double-click to
// reset the zoom, and click a name in the legend to hide its curve.
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

  function axis(values) {
    const line = { stroke: cssColour("--line"), width: 1 };
    return { stroke: cssColour("--muted"), grid: line, ticks: line, ...values };
  }

  function curve(series, i, unit) {
    return {
      label: series.label,
      stroke: COLOURS[i % COLOURS.length],
      dash: DASHES[Math.floor(i / COLOURS.length) % DASHES.length],
      width: 1.75,
      spanGaps: true,
      points: { show: series.values.filter((v) => v != null).length < 30, size: 5 },
      value: formatValue(unit),
    };
  }

  function plot(target, chart, group) {
    const options = {
      title: chart.title,
      width: target.clientWidth,
      height: HEIGHT,
      cursor: { sync: { key: group }, drag: { x: true, y: false } },
      scales: { x: { time: false } },
      axes: [
        axis({ values: (_, ticks) => ticks.map((v) => (Number.isInteger(v) ? compact.format(v) : "")) }),
        axis({ size: 64, values: (_, ticks) => ticks.map(formatters[chart.unit]) }),
      ],
      series: [
        { label: "step", value: (_, v) => (v == null ? "–" : v.toLocaleString("en")) },
        ...chart.series.map((series, i) => curve(series, i, chart.unit)),
      ],
    };
    return new uPlot(options, [chart.steps, ...chart.series.map((series) => series.values)], target);
  }

  for (const block of document.querySelectorAll(".plots")) {
    const { group, charts } = JSON.parse(block.querySelector("script").textContent);
    const targets = [...block.querySelectorAll(".plot")];
    let plots = [];
    const redraw = () => {
      plots.forEach((each) => each.destroy());
      plots = charts.map((chart, i) => plot(targets[i], chart, group));
    };
    redraw();
    dark.addEventListener("change", redraw);
    new ResizeObserver(() => {
      plots.forEach((each, i) => {
        if (each.width !== targets[i].clientWidth) {
          each.setSize({ width: targets[i].clientWidth, height: HEIGHT });
        }
      });
    }).observe(block);
  }
})();
