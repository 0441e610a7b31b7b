// Rows of a Sokoban board in, a picture that moves out. Every kind of cell has a form of its own, so that none is told by
// color alone: bricks, nothing, a ring, a crate with a cross, a crate with a tick, a figure.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const TARGETS = "O\u221aS", BOXES = "X\u221a", PLAYERS = "PS";

  const draw = (name, attributes, ...children) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };

  const cellsOf = (rows, symbols) =>
    rows.flatMap((row, y) => [...row].flatMap((symbol, x) => (symbols.includes(symbol) ? [`${x},${y}`] : [])));

  const bricks = () => {
    const wall = draw("g", { class: "sb-wall" }, draw("rect", { width: 101, height: 101 }));
    const seams = ["M0 1H100M0 34H100M0 67H100", "M1 0V33M51 0V33M26 34V66M76 34V66M1 67V100M51 67V100"];
    wall.append(...seams.map((d) => draw("path", { d })));
    return wall;
  };

  const crate = () =>
    draw("g", { class: "sb-box" },
      draw("rect", { class: "sb-crate", x: 13, y: 13, width: 74, height: 74, rx: 9 }),
      draw("path", { class: "sb-cross", d: "M19 19L81 81M19 81L81 19" }),
      draw("path", { class: "sb-tick", d: "M30 52L44 66L71 36" }));

  const figure = () =>
    draw("g", { class: "sb-player" },
      draw("path", { d: "M25 84a25 30 0 0 1 50 0z" }),
      draw("circle", { class: "sb-halo", cx: 50, cy: 36, r: 20 }),
      draw("circle", { cx: 50, cy: 36, r: 15.5 }));

  const place = (sprite, cell) => {
    const [x, y] = cell.split(",");
    sprite.style.transform = `translate(${x * 100}px, ${y * 100}px)`;
    sprite.cell = cell;
  };

  const inWords = (rows) => {
    const say = (symbols) => cellsOf(rows, symbols).map((cell) => {
      const [x, y] = cell.split(",");
      return `row ${Number(y) + 1} column ${Number(x) + 1}`;
    }).join(", ") || "none";
    return `Sokoban board, ${rows.length} by ${rows[0].length}. Player at ${say(PLAYERS)}. ` +
      `Boxes off target: ${say("X")}. Boxes on target: ${say("\u221a")}. Free targets: ${say("OS")}.`;
  };

  class SokobanBoard extends HTMLElement {
    show(rows) {
      const fixed = rows.map((row) => row.replace(/[^#]/g, "_")).join("\n") + cellsOf(rows, TARGETS);
      const boxes = cellsOf(rows, BOXES);
      if (fixed !== this.fixed || boxes.length !== this.boxes.length) this.build(rows, fixed, boxes.length);
      this.svg.setAttribute("aria-label", inWords(rows));
      const left = boxes.filter((cell) => !this.boxes.some((box) => box.cell === cell));
      for (const box of this.boxes) if (!boxes.includes(box.cell)) place(box, left.shift());
      const targets = cellsOf(rows, TARGETS);
      for (const box of this.boxes) box.classList.toggle("is-home", targets.includes(box.cell));
      place(this.player, cellsOf(rows, PLAYERS)[0]);
    }

    build(rows, fixed, count) {
      this.fixed = fixed;
      const size = { viewBox: `0 0 ${rows[0].length * 100} ${rows.length * 100}`, role: "img" };
      this.svg = draw("svg", size);
      const ground = draw("g", {});
      rows.forEach((row, y) => [...row].forEach((symbol, x) => {
        const cell = draw("g", { transform: `translate(${x * 100} ${y * 100})` });
        if (symbol === "#") cell.append(bricks());
        else cell.append(draw("rect", { class: "sb-floor", x: 1, y: 1, width: 98, height: 98 }));
        if (TARGETS.includes(symbol))
          cell.append(draw("circle", { class: "sb-ring", cx: 50, cy: 50, r: 24 }),
            draw("circle", { class: "sb-spot", cx: 50, cy: 50, r: 8 }));
        ground.append(cell);
      }));
      this.boxes = Array.from({ length: count }, crate);
      this.boxes.forEach((box) => place(box, "0,0"));
      this.boxes.forEach((box) => (box.cell = null));
      this.player = figure();
      this.svg.append(ground, ...this.boxes, this.player);
      this.classList.add("is-new");  // the first position is not moved to
      this.replaceChildren(this.svg);
      requestAnimationFrame(() => requestAnimationFrame(() => this.classList.remove("is-new")));
    }
  }
  customElements.define("sokoban-board", SokobanBoard);

  const STEPS = { Up: [0, -1], Down: [0, 1], Left: [-1, 0], Right: [1, 0] };

  // The rules, for moves that must be seen at once; the server counts the score by its own.
  window.sokobanMove = (rows, move) => {
    const grid = rows.map((row) => [...row]);
    const [dx, dy] = STEPS[move];
    const [x, y] = cellsOf(rows, PLAYERS)[0].split(",").map(Number);
    const at = (steps) => (grid[y + steps * dy] || [])[x + steps * dx] || "#";
    const put = (steps, symbol) => (grid[y + steps * dy][x + steps * dx] = symbol);
    const free = (symbol) => "_O".includes(symbol);
    if (BOXES.includes(at(1))) {
      if (!free(at(2))) return rows;
      put(2, at(2) === "O" ? "\u221a" : "X");
    } else if (!free(at(1))) return rows;
    put(1, TARGETS.includes(at(1)) ? "S" : "P");
    put(0, at(0) === "S" ? "O" : "_");
    return grid.map((row) => row.join(""));
  };
  window.sokobanSolved = (rows) => !rows.join("").includes("X");
  window.sokobanRows = (level) => {
    const symbols = { " ": "_", ".": "O", "$": "X", "*": "\u221a", "@": "P", "+": "S" };
    return level.split("\n").map((row) => [...row].map((symbol) => symbols[symbol] || symbol).join(""));
  };
})();
