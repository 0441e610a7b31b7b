// What training recorded in, three charts and their tables out.
(() => {
  const KINDS = ["is-series-0", "is-series-1", "is-series-2", "is-series-3"];
  const percent = (share) => `${Math.round(share * 100)} %`;

  const card = (title, text, legend, drawing, head, rows) =>
    make("section", { class: "tv-card" }, make("h3", {}, title), make("p", {}, text),
      make("figure", { class: "tp-chart" }, make("figcaption", {}, ...legend.map(([name, kind]) => make("span", { class: kind }, name))), drawing),
      make("details", {}, make("summary", {}, "As a table"), make("div", { class: "tv-scroll", tabindex: 0 }, make("table", {},
        make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
        make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell)))))))));

  const curves = (data, width) => {
    const steps = data.curves.flatMap((curve) => curve.points.map((point) => point.step));
    const drawing = chart({ width, height: 300, right: 118, x: [0, Math.max(...steps)], y: [0, 1], xName: "optimizer step",
      label: data.curves.map((curve) => `${curve.name} goes from ${percent(curve.points[0].mean)} to ${percent(curve.points.at(-1).mean)}`).join("; ") });
    for (const line of data.references) drawing.rule(line.share, "");
    data.curves.forEach((curve, n) => drawing.band(curve.points.map((point) => [point.step, point.low, point.high]), KINDS[n]));
    data.curves.forEach((curve, n) => {
      drawing.line(curve.points.map((point) => [point.step, point.mean]), KINDS[n]);
      for (const point of curve.points)
        drawing.dot(point.step, point.mean, KINDS[n], 4, `${curve.name}, step ${point.step}: ${point.mean.toFixed(2)}`);
    });
    const ends = [...data.curves.map((curve, n) => [curve.points.at(-1).mean, curve.name, KINDS[n]]),
      ...data.references.map((line) => [line.share, line.name, "is-reference"])].sort((a, b) => a[0] - b[0]);
    let height = -1;
    for (const [share, name, kind] of ends) {
      height = Math.max(share, height + 0.065);
      drawing.name(height, `${name} ${share.toFixed(2)}`, kind);
    }
    const rows = data.curves.flatMap((curve) => curve.points.map((point) =>
      [curve.name, String(point.step), point.mean.toFixed(3), `${point.low.toFixed(3)} to ${point.high.toFixed(3)}`]));
    return card("Learning curves", `Success on ${data.episodes} held-out levels of ${data.world}, with 95 % intervals.`,
      data.curves.map((curve, n) => [curve.name, KINDS[n]]), drawing.svg, ["agent", "step", "success", "95 % interval"], rows);
  };

  const calibration = (data, width) => {
    const { points, groups } = data;
    const all = points.flat();
    const range = around(all, false);
    const drawing = chart({ width, height: 300, x: range, y: range, xName: "critic's value before the turn",
      label: `Return that followed against the critic's value of ${points.length} turns; groups of similar values: ` +
        groups.map((group) => `${figure(group.value)} was ${figure(group.mean)}`).join(", ") });
    for (const [value, gain] of points) drawing.dot(value, gain, "is-faint", 3);
    drawing.line([[range[0], range[0]], [range[1], range[1]]], "is-equal");
    for (const group of groups) {
      if (group.margin !== null) drawing.stem(group.value, group.mean - group.margin, group.mean + group.margin, "is-series-1");
      drawing.dot(group.value, group.mean, "is-series-1", 6, `said ${figure(group.value)}, was ${figure(group.mean)}`);
    }
    return card("What the critic said, and what followed",
      `${data.agent}: it explains ${percent(data.explained_variance)} of the variance of the returns over ${points.length} turns; a constant explains 0 %.`,
      [["a turn", "is-series-0"], ["mean of turns with similar values", "is-series-1"], ["value = return", "is-equal"]], drawing.svg,
      ["mean value", "mean return", "\u00b1 (95 %)"],
      groups.map((group) => [figure(group.value), figure(group.mean), group.margin === null ? "\u2013" : figure(group.margin)]));
  };

  const advantages = (data, width) => {
    const lists = data.outcomes;
    const bounds = lists.flatMap((list) => list.turns.flatMap((turn) => [turn.low, turn.high]));
    const last = Math.max(...lists.flatMap((list) => list.turns.map((turn) => turn.turn)));
    const drawing = chart({ width, height: 300, x: [1, last], y: around(bounds), xName: "turn of the episode",
      xTicks: Array.from({ length: last }, (_, n) => n + 1),
      label: lists.map((list) => `${list.name}: ${list.turns.map((turn) => `turn ${turn.turn} ${figure(turn.mean)}`).join(", ")}`).join("; ") });
    drawing.rule(0, "");
    lists.forEach((list, n) => {
      drawing.line(list.turns.map((turn) => [turn.turn, turn.mean]), KINDS[n]);
      for (const turn of list.turns) {
        drawing.stem(turn.turn, turn.low, turn.high, KINDS[n]);
        drawing.dot(turn.turn, turn.mean, KINDS[n], 5, `${list.name}, turn ${turn.turn}: ${signed(turn.mean)} (${turn.count} turns)`);
      }
    });
    return card("Which turns were credited", `${data.agent}: mean advantage by turn, with the quartiles of the turns.`,
      lists.map((list, n) => [list.name, KINDS[n]]), drawing.svg, ["episodes", "turn", "mean advantage", "quartiles", "turns"],
      lists.flatMap((list) => list.turns.map((turn) =>
        [list.name, String(turn.turn), signed(turn.mean), `${figure(turn.low)} to ${figure(turn.high)}`, String(turn.count)])));
  };

  class TrainingView extends HTMLElement {
    connectedCallback() {
      this.watcher = new ResizeObserver(() => this.draw());
      this.watcher.observe(this);
    }

    disconnectedCallback() {
      this.watcher.disconnect();
    }

    show(data) {
      this.data = data;
      this.draw();
    }

    // Charts are as wide as their place, so that their letters are as large as the page's.
    draw() {
      const width = this.clientWidth;
      if (!this.data || width < 50 || Math.abs(width - (this.drawn || 0)) < 8) return;
      this.drawn = width;
      const half = width > 716 ? (width - 22) / 2 : width;
      this.replaceChildren(make("div", { class: "tv" }, curves(this.data.curves, width - 42),
        calibration(this.data.calibration, half - 42), advantages(this.data.advantages, half - 42)));
    }
  }
  customElements.define("training-view", TrainingView);
})();
