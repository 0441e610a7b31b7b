// A level in, a game for a person out: arrow keys, W A S D or buttons. When it is over, the moves are told: "finished".
(() => {
  const KEYS = { ArrowUp: "Up", ArrowDown: "Down", ArrowLeft: "Left", ArrowRight: "Right", w: "Up", s: "Down", a: "Left", d: "Right" };
  const ARROWS = { Up: "\u2191", Down: "\u2193", Left: "\u2190", Right: "\u2192" };

  class SokobanGame extends HTMLElement {
    show(game) {
      if (!game) return;
      this.game = game;
      if (!this.board) this.build();
      this.start();
    }

    build() {
      this.board = make("sokoban-board");
      const field = make("div", { class: "sg-field", tabindex: 0, role: "application",
        "aria-label": "Sokoban: move with the arrow keys, undo with U, start again with R",
        onkeydown: (event) => this.key(event) }, this.board);
      const pad = (move) => make("button", { type: "button", class: `sg-${move.toLowerCase()}`, "aria-label": move,
        onclick: () => this.move(move) }, ARROWS[move]);
      this.says = make("p", { class: "sg-says", "aria-live": "polite" });
      this.undoButton = make("button", { type: "button", onclick: () => this.undo() }, "Undo (U)");
      this.replaceChildren(make("div", { class: "sg" }, field, make("div", { class: "sg-side" }, this.says,
        make("div", { class: "sg-pad" }, ...["Up", "Left", "Down", "Right"].map(pad)),
        make("div", { class: "sg-row" }, this.undoButton,
          make("button", { type: "button", onclick: () => this.start() }, "Start again (R)")),
        make("p", { class: "sg-hint" }, "Click the board, then use the arrow keys or W A S D."))));
    }

    start() {
      this.past = [sokobanRows(this.game.level)];
      this.moves = [];
      this.draw();
    }

    get rows() {
      return this.past[this.past.length - 1];
    }

    get isOver() {
      return sokobanSolved(this.rows) || this.moves.length >= this.game.max_actions;
    }

    key(event) {
      const letter = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (KEYS[letter]) this.move(KEYS[letter]);
      else if (letter === "u") this.undo();
      else if (letter === "r") this.start();
      else return;
      event.preventDefault();
    }

    move(move) {
      if (this.isOver) return;
      this.past.push(sokobanMove(this.rows, move));
      this.moves.push(move);
      this.draw();
      if (this.isOver) this.dispatchEvent(new CustomEvent("finished", { detail: { level: this.game.level, moves: this.moves } }));
    }

    undo() {
      if (!this.moves.length || sokobanSolved(this.rows)) return;
      this.past.pop();
      this.moves.pop();
      this.draw();
    }

    draw() {
      this.board.show(this.rows);
      const left = this.game.max_actions - this.moves.length;
      const count = (number) => `${number} ${number === 1 ? "move" : "moves"}`;
      this.says.className = `sg-says ${sokobanSolved(this.rows) ? "is-good" : left === 0 ? "is-bad" : ""}`;
      this.says.textContent = sokobanSolved(this.rows) ? `Solved in ${count(this.moves.length)}!`
        : left === 0 ? "Out of moves. Undo or start again."
        : this.moves.length ? `${count(left)} left` : `Push every crate onto a ring. You have ${count(left)}, as the agent.`;
      this.undoButton.disabled = !this.moves.length || sokobanSolved(this.rows);
    }
  }
  customElements.define("sokoban-game", SokobanGame);

  // How several players did on one level.
  class ScoreTable extends HTMLElement {
    show(rows) {
      this.hidden = !rows || !rows.length;
      if (this.hidden) return;
      const best = Math.max(...rows.map((row) => row.total), 1);
      this.replaceChildren(make("table", { class: "st" },
        make("thead", {}, make("tr", {}, ...["player", "result", "moves", "return"].map((name) => make("th", { scope: "col" }, name)))),
        make("tbody", {}, ...rows.map((row) => make("tr", {},
          make("th", { scope: "row" }, row.name),
          make("td", {}, make("span", { class: `tp-chip ${row.solved ? "is-good" : "is-bad"}` }, row.solved ? "\u2713 solved" : "\u2715 not solved")),
          make("td", {}, String(row.moves)),
          make("td", {}, make("span", { class: "st-bar", style: `--share: ${Math.max(row.total, 0) / best}` }), figure(row.total)))))));
    }
  }
  customElements.define("score-table", ScoreTable);
})();
