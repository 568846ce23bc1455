"use strict";
// Draws every .plot of the page from the numbers beside it. Drag to zoom, double-click to go back,
// and click a name in the legend to hide its curve.
(() => {
  // Okabe and Ito's palette, which colour-blind people tell apart.
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999"];
  const DASHES = [[], [6, 4], [2, 3]]; // When the colours have all been used.
  const HEIGHT = 230;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });

  const write = {
    number: (v) => (v !== 0 && Math.abs(v) < 1e-3 ? v.toExponential(1) : +v.toPrecision(4) + ""),
    share: (v) => +(100 * v).toPrecision(4) + " %",
    rate: (v) => short.format(v),
  };
  const told = (unit) => (_, v) => (v == null ? "–" : write[unit](v));
  const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

  function axis(values) {
    const line = { stroke: colourOf("--line"), width: 1 };
    return { stroke: colourOf("--quiet"), grid: line, ticks: line, ...values };
  }

  function curve(each, i, unit) {
    return {
      label: each.label,
      stroke: COLOURS[i % COLOURS.length],
      dash: DASHES[Math.floor(i / COLOURS.length) % DASHES.length],
      width: 1.75,
      spanGaps: true,
      points: { show: each.values.filter((v) => v != null).length < 30, size: 5 },
      value: told(unit),
    };
  }

  function draw(place, chart, group) {
    const options = {
      title: chart.title,
      width: place.clientWidth,
      height: HEIGHT,
      cursor: { sync: { key: group }, drag: { x: true, y: false } },
      scales: { x: { time: false } },
      axes: [
        axis({ values: (_, ticks) => ticks.map((v) => (Number.isInteger(v) ? short.format(v) : "")) }),
        axis({ size: 64, values: (_, ticks) => ticks.map(write[chart.unit]) }),
      ],
      series: [
        { label: "step", value: (_, v) => (v == null ? "–" : v.toLocaleString("en")) },
        ...chart.series.map((each, i) => curve(each, i, chart.unit)),
      ],
    };
    return new uPlot(options, [chart.steps, ...chart.series.map((each) => each.values)], place);
  }

  for (const block of document.querySelectorAll(".plots")) {
    const { group, charts } = JSON.parse(block.querySelector("script").textContent);
    const places = [...block.querySelectorAll(".plot")];
    let drawn = [];
    const redraw = () => {
      drawn.forEach((plot) => plot.destroy());
      drawn = charts.map((chart, i) => draw(places[i], chart, group));
    };
    redraw();
    dark.addEventListener("change", redraw);
    new ResizeObserver(() => {
      drawn.forEach((plot, i) => {
        if (plot.width !== places[i].clientWidth) {
          plot.setSize({ width: places[i].clientWidth, height: HEIGHT });
        }
      });
    }).observe(block);
  }
})();
