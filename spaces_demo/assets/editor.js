// A level in, a grid of cells to paint out. Every change is told: "changed", with the level as XSB text.
(() => {
  const TOOLS = [["#", "Wall"], [" ", "Floor"], [".", "Target"], ["$", "Crate"], ["@", "Player"]];
  const NAMES = { ...Object.fromEntries(TOOLS), "*": "Crate on target", "+": "Player on target" };

  class LevelEditor extends HTMLElement {
    show(level) {
      if (!level || level === this.level) return;
      this.level = level;
      const rows = level.split("\n");
      const width = Math.max(...rows.map((row) => row.length));
      this.grid = rows.map((row) => [...row.padEnd(width, "#")]);
      if (!this.tool) this.tool = "#";
      this.draw();
    }

    draw() {
      const tools = TOOLS.map(([symbol, name]) => make("button", { type: "button", role: "radio",
        "aria-checked": String(this.tool === symbol), class: "le-tool", onclick: () => { this.tool = symbol; this.draw(); } },
        this.cell(symbol), name));
      const side = (name, change) => make("button", { type: "button", class: "le-size", onclick: () => this.resize(change) }, name);
      const rows = this.grid.map((row, y) => make("div", { class: "le-row", role: "row" }, ...row.map((symbol, x) => {
        const button = make("button", { type: "button", role: "gridcell", tabindex: y === this.at?.[1] && x === this.at?.[0] || (!this.at && !x && !y) ? 0 : -1,
          "aria-label": `row ${y + 1} column ${x + 1}: ${NAMES[symbol] || "Floor"}`, onclick: () => this.paint(x, y),
          onkeydown: (event) => this.key(event, x, y) }, this.cell(symbol));
        return button;
      })));
      this.replaceChildren(make("div", { class: "le" },
        make("div", { class: "le-tools", role: "radiogroup", "aria-label": "Paint with" }, ...tools),
        make("div", { class: "le-grid", role: "grid", "aria-label": "Level" }, ...rows),
        make("div", { class: "le-sizes" }, side("Wider", [1, 0]), side("Narrower", [-1, 0]), side("Taller", [0, 1]), side("Lower", [0, -1]))));
    }

    cell(symbol) {
      return make("span", { class: `le-cell ${{ "#": "is-wall", ".": "is-target", $: "is-box", "*": "is-home", "@": "is-player", "+": "is-player is-target" }[symbol] || ""}`, "aria-hidden": "true" });
    }

    key(event, x, y) {
      const step = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
      const tool = TOOLS[Number(event.key) - 1];
      if (tool) { this.tool = tool[0]; this.paint(x, y); }
      else if (!step) return;
      else this.focusCell(x + step[0], y + step[1]);
      event.preventDefault();
    }

    focusCell(x, y) {
      if (!this.grid[y] || !this.grid[y][x]) return;
      this.at = [x, y];
      const cells = this.querySelectorAll(".le-row");
      this.querySelectorAll('[role="gridcell"]').forEach((cell) => (cell.tabIndex = -1));
      cells[y].children[x].tabIndex = 0;
      cells[y].children[x].focus();
    }

    paint(x, y) {
      const old = this.grid[y][x];
      const onTarget = ".*+".includes(old);
      if (this.tool === "@")
        this.grid = this.grid.map((row) => row.map((symbol) => ({ "@": " ", "+": "." })[symbol] || symbol));
      if (this.tool === "$") this.grid[y][x] = onTarget ? "*" : "$";
      else if (this.tool === "@") this.grid[y][x] = onTarget ? "+" : "@";
      else if (this.tool === "." && "$@".includes(old)) this.grid[y][x] = old === "$" ? "*" : "+";
      else this.grid[y][x] = this.tool;
      this.at = [x, y];
      this.draw();
      this.focusCell(x, y);
      this.tell();
    }

    resize([wider, taller]) {
      const height = this.grid.length + taller, width = this.grid[0].length + wider;
      if (Math.min(height, width) < 3 || Math.max(height, width) > 8) return;
      const inside = (y, x) => y < height - 1 && x < width - 1 && y < this.grid.length - (taller > 0) && x < this.grid[0].length - (wider > 0);
      this.grid = Array.from({ length: height }, (_, y) => Array.from({ length: width }, (_, x) =>
        inside(y, x) ? this.grid[y][x] : y && x && y < height - 1 && x < width - 1 ? " " : "#"));
      this.at = null;
      this.draw();
      this.tell();
    }

    tell() {
      this.level = this.grid.map((row) => row.join("")).join("\n");
      this.dispatchEvent(new CustomEvent("changed", { detail: { level: this.level } }));
    }
  }
  customElements.define("level-editor", LevelEditor);
})();
