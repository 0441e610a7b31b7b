// Numbers in, a chart out that takes its colors from the page.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const draw = (name, attributes, ...children) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children.filter((child) => child));
    return node;
  };

  const ticks = (low, high) => {
    const rough = (high - low) / 4 || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const first = Math.ceil(low / step - 1e-9);
    return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, n) => (first + n) * step);
  };
  const short = (value) => String(Number(value.toFixed(2))).replace("-", "\u2212");

  // options: width, height, x: [low, high], y: [low, high], xTicks, label, xName, right (room for names)
  window.chart = (options) => {
    const { width, height, right = 12 } = options;
    const [left, top, bottom] = [40, 10, options.xName ? 40 : 24];
    const [x0, x1] = options.x, [y0, y1] = options.y;
    const sx = (x) => left + ((x - x0) / (x1 - x0 || 1)) * (width - left - right);
    const sy = (y) => height - bottom - ((y - y0) / (y1 - y0 || 1)) * (height - top - bottom);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": options.label });
    for (const y of ticks(y0, y1)) {
      svg.append(draw("line", { class: "ch-grid", x1: left, x2: width - right, y1: sy(y), y2: sy(y) }),
        draw("text", { class: "ch-tick", x: left - 8, y: sy(y) + 4, "text-anchor": "end" }, short(y)));
    }
    for (const x of options.xTicks || ticks(x0, x1))
      svg.append(draw("text", { class: "ch-tick", x: sx(x), y: height - bottom + 18, "text-anchor": "middle" }, short(x)));
    if (options.xName)
      svg.append(draw("text", { class: "ch-name", x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" },
        options.xName));
    const path = (points) => points.map(([x, y], n) => `${n ? "L" : "M"}${sx(x)} ${sy(y)}`).join("");
    return {
      svg, sx, sy,
      line: (points, kind) => svg.append(draw("path", { class: `ch-line ${kind}`, d: path(points) })),
      band: (points, kind) => svg.append(draw("path", { class: `ch-band ${kind}`,
        d: `${path(points.map(([x, low]) => [x, low]))}${path(points.map(([x, , high]) => [x, high]).reverse()).replace("M", "L")}Z` })),
      dot: (x, y, kind, radius = 4, title = null) => {
        const dot = draw("circle", { class: `ch-dot ${kind}`, cx: sx(x), cy: sy(y), r: radius });
        if (title) dot.append(draw("title", {}, title));
        svg.append(dot);
        return dot;
      },
      rule: (y, name) => svg.append(
        draw("line", { class: "ch-rule", x1: left, x2: width - right, y1: sy(y), y2: sy(y) }),
        name ? draw("text", { class: "ch-tick", x: width - right + 8, y: sy(y) + 4 }, name) : ""),
      name: (y, text, kind) => svg.append(draw("text", { class: `ch-label ${kind}`, x: width - right + 8, y: sy(y) + 4 }, text)),
      cursor: (x) => svg.append(draw("line", { class: "ch-cursor", x1: sx(x), x2: sx(x), y1: top, y2: height - bottom })),
      stem: (x, low, high, kind) => svg.append(draw("line", { class: `ch-stem ${kind}`, x1: sx(x), x2: sx(x), y1: sy(low), y2: sy(high) })),
    };
  };

  window.around = (values, zero = true) => {
    const known = values.filter((value) => value !== null && value !== undefined);
    const low = Math.min(...known, ...(zero ? [0] : [])), high = Math.max(...known, ...(zero ? [0] : []));
    const room = (high - low || 1) * 0.08;
    return [low - (low < 0 ? room : 0), high + room];
  };
})();
