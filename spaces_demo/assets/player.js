// An episode in, its replay out: what the agent saw on one side; what it did, earned and expected on the other.
(() => {
  const TURN_MS = 1000, MOVE_MS = 420, PAGE_MS = 2200;
  const ARROWS = { Up: "\u2191", Down: "\u2193", Left: "\u2190", Right: "\u2192" };
  const ICONS = {
    first: "M7 5v14h2V5zM20 5v14L10 12z", back: "M17 5v14L7 12z", play: "M8 5v14l11-7z",
    pause: "M7 5h4v14H7zM13 5h4v14h-4z", next: "M7 5v14l10-7z",
  };
  const icon = (name) => {
    const node = make("span", { class: "tp-icon", "aria-hidden": "true" });
    node.innerHTML = `<svg viewBox="0 0 24 24"><path d="${ICONS[name]}"/></svg>`;  // ours, constant
    return node;
  };

  const framesOf = (episode) => {
    const frames = episode.turns.flatMap((turn, index) =>
      Array.from({ length: turn.boards ? turn.boards.length : 1 }, (_, step) => ({ index, step })));
    if (episode.last_page) frames.push({ index: episode.turns.length - 1, step: 1 });
    return frames;
  };

  class TurnPlayer extends HTMLElement {
    connectedCallback() {
      if (!this.stage) this.build();
    }

    disconnectedCallback() {
      this.pause();
    }

    build() {
      this.stage = make("div", { class: "tp-stage" });
      const control = (name, label, act) => make("button", { type: "button", "aria-label": label, title: label, onclick: act }, icon(name));
      this.toggle = control("play", "Play", () => (this.timer ? this.pause() : this.play()));
      this.toggle.classList.add("tp-toggle");
      this.range = make("input", { type: "range", min: 0, value: 0, "aria-label": "Moment of the episode",
        oninput: () => this.go(Number(this.range.value)) });
      this.controls = make("div", { class: "tp-controls" },
        control("first", "To the start", () => this.go(0)),
        control("back", "Turn before", () => this.goToTurn(-1)),
        this.toggle,
        control("next", "Next turn", () => this.goToTurn(1)),
        this.range);
      this.side = make("div", { class: "tp-side" });
      this.more = make("div", { class: "tp-more" });
      this.says = make("p", { class: "tp-says", "aria-live": "polite" });
      this.replaceChildren(make("div", { class: "tp" }, make("div", { class: "tp-left" }, this.stage, this.controls),
        this.side, this.more, this.says));
    }

    // Show an episode from its start; one that goes on is followed from where it was.
    show(episode, { autoplay = false } = {}) {
      this.connectedCallback();
      const key = (item) => [item.agent, item.seed, item.level, item.world].join("|");
      const goesOn = this.episode && episode && this.episode.running && key(this.episode) === key(episode);
      this.episode = episode;
      this.classList.toggle("is-empty", !episode);
      if (!episode) return this.pause();
      this.frames = framesOf(episode);
      this.range.max = this.frames.length - 1;
      if (goesOn) {
        this.draw();
        return this.play();
      }
      this.pause();
      this.pos = 0;
      this.opened = {};
      this.draw();
      if (autoplay || episode.running) this.play();
    }

    go(pos) {
      this.pause();
      this.pos = pos;
      this.draw();
    }

    goToTurn(change) {
      const { index, step } = this.frames[this.pos];
      const wanted = change < 0 && step > 0 ? index : index + change;
      const found = this.frames.findIndex((frame) => frame.index === wanted);
      if (change > 0 && found < 0) return this.go(this.frames.length - 1);
      this.go(Math.max(found, 0));
    }

    play() {
      if (this.timer) return;
      if (this.pos >= this.frames.length - 1) {
        if (this.episode.running) return;
        this.pos = 0;
        this.draw();
      }
      this.setPlaying(true);
      this.later();
    }

    later() {
      const { index, step } = this.frames[this.pos];
      const turn = this.episode.turns[index];
      const wait = !turn.boards ? PAGE_MS : step === 0 ? TURN_MS : MOVE_MS;
      this.timer = setTimeout(() => {
        if (this.pos < this.frames.length - 1) this.pos += 1;
        this.draw();
        if (this.pos < this.frames.length - 1) this.later();
        else this.pause();
      }, this.episode.running ? wait / 2 : wait);
    }

    pause() {
      clearTimeout(this.timer);
      this.timer = null;
      if (this.toggle) this.setPlaying(false);
    }

    setPlaying(isPlaying) {
      this.toggle.replaceChildren(icon(isPlaying ? "pause" : "play"));
      const label = isPlaying ? "Pause" : "Play";
      this.toggle.setAttribute("aria-label", label);
      this.toggle.title = label;
    }

    draw() {
      const { index, step } = this.frames[this.pos];
      const turn = this.episode.turns[index];
      const isLast = this.pos === this.frames.length - 1 && !this.episode.running;
      this.range.value = this.pos;
      const words = `Turn ${index + 1} of ${this.episode.turns.length}` + (isLast ? `: ${this.episode.ending}` : "");
      this.range.setAttribute("aria-valuetext", words);
      this.says.textContent = this.timer ? "" : words;
      this.drawStage(turn, step);
      this.side.replaceChildren(...this.parts(turn, index, step, isLast));
      this.drawMore(turn, index);
    }

    drawStage(turn, step) {
      const kind = turn.boards ? "sokoban-board" : turn.page ? "shop-page" : "pre";
      let seen = this.stage.firstElementChild;
      if (!seen || seen.localName !== kind) {
        seen = make(kind, kind === "pre" ? { tabindex: 0 } : {});
        this.stage.replaceChildren(seen);
        this.stage.className = `tp-stage is-${kind}`;
      }
      if (kind === "sokoban-board") seen.show(turn.boards[step]);
      else if (kind === "shop-page") seen.show(step ? this.episode.last_page : turn.page, step ? "" : turn.action);
      else seen.textContent = turn.text;
    }

    parts(turn, index, step, isLast) {
      const episode = this.episode;
      const marks = episode.turns.map((item, number) =>
        make("button", { type: "button", class: number < index ? "is-done" : number === index ? "is-now" : "",
          "aria-label": `Turn ${number + 1}`, "aria-current": number === index ? "step" : null,
          onclick: () => this.go(this.frames.findIndex((frame) => frame.index === number)) }));
      const outcome = isLast
        ? make("span", { class: `tp-chip ${episode.solved ? "is-good" : "is-bad"}`, title: episode.why },
          `${episode.solved ? "\u2713" : "\u2715"} ${episode.ending}`)
        : make("span", { class: "tp-chip" }, episode.running ? "playing" : `return ${figure(episode.total)}`);
      return [
        make("p", { class: "tp-kind" }, `${episode.agent} \u00b7 ${episode.world}` +
          (episode.seed === null ? "" : ` \u00b7 seed ${episode.seed}`)),
        make("div", { class: "tp-head" },
          make("h3", {}, `Turn ${index + 1}`, make("small", {}, episode.running ? "" : ` of ${episode.turns.length}`)), outcome),
        make("div", { class: "tp-marks", role: "group", "aria-label": "Turns" }, ...marks),
        this.action(turn, step),
        this.numbers(turn),
        this.verdict(turn),
        this.valueLine(index),
        episode.note ? make("p", { class: "tp-note" }, episode.note) : null,
      ].filter(Boolean);
    }

    action(turn, step) {
      if (turn.is_waiting) return make("p", { class: "tp-action is-thinking" }, make("span", {}, "thinking"));
      if (turn.moves.length)
        return make("div", { class: "tp-action" }, make("span", { class: "tp-label" }, "did"), ...turn.moves.map((move, number) =>
          make("kbd", { class: number < step ? "is-done" : "", title: move, "aria-label": move }, ARROWS[move])));
      if (turn.action) return make("div", { class: "tp-action" }, make("span", { class: "tp-label" }, "did"), make("code", {}, turn.action));
      return make("div", { class: "tp-action is-nothing" }, make("span", { class: "tp-label" }, "did nothing: this was not understood"),
        make("code", {}, turn.response || "(empty)"));
    }

    numbers(turn) {
      const hasCritic = this.episode.has_critic;
      const reward = turn.penalty ? `${signed(turn.reward)} ${signed(turn.penalty)}` : signed(turn.reward);
      const rows = [["reward", turn.is_waiting ? "\u2013" : reward, turn.penalty ? "of the turn, and its format penalty" : "of the turn"]];
      if (hasCritic)
        rows.push(["V(state)", figure(turn.value), "what the critic expected before the turn"],
          ["TD error", turn.is_waiting ? "\u2013" : signed(turn.td_error), "reward + \u03b3 V(next state) \u2212 V(state): the surprise"],
          ["advantage", turn.is_waiting ? "\u2013" : signed(turn.advantage), "what the turn is credited with in training"]);
      return make("dl", { class: `tp-numbers ${hasCritic ? "" : "is-single"}` }, ...rows.map(([name, value, title]) =>
        make("div", { title }, make("dt", {}, name), make("dd", {}, value))));
    }

    verdict(turn) {
      if (turn.value === null || turn.return === null || turn.is_waiting)
        return this.episode.has_critic || turn.is_waiting ? make("p", { class: "tp-verdict is-open" },
          this.episode.running ? "The return is known when the episode is over." : "No return is known here.") : null;
      const off = turn.value - turn.return;
      const judged = Math.abs(off) < 0.5 ? "about right" : `${figure(Math.abs(off))} too ${off > 0 ? "high" : "low"}`;
      return make("p", { class: "tp-verdict" }, "critic said ", make("strong", { class: "is-value" }, figure(turn.value)),
        " \u00b7 return was ", make("strong", { class: "is-return" }, figure(turn.return)), make("em", {}, judged));
    }

    valueLine(index) {
      const turns = this.episode.turns;
      const values = turns.map((turn) => turn.value), returns = turns.map((turn) => turn.return);
      if (![...values, ...returns].some((value) => value !== null)) return null;
      const known = (list) => list.map((value, n) => [n + 1, value]).filter(([, value]) => value !== null);
      const drawing = chart({ width: Math.max(this.side.clientWidth, 260), height: 180, x: [1, Math.max(turns.length, 2)], y: around([...values, ...returns]),
        xTicks: turns.map((_, n) => n + 1),
        label: `By turn: the critic's value ${values.map(figure).join(", ")}; the return that followed ${returns.map(figure).join(", ")}` });
      drawing.cursor(index + 1);
      drawing.line(known(returns), "is-return");
      drawing.line(known(values), "is-value");
      for (const [list, kind] of [[returns, "is-return"], [values, "is-value"]])
        for (const [x, y] of known(list)) {
          const dot = drawing.dot(x, y, kind, x === index + 1 ? 6 : 4);
          dot.addEventListener("click", () => this.go(this.frames.findIndex((frame) => frame.index === x - 1)));
        }
      return make("figure", { class: "tp-chart" }, make("figcaption", {},
        this.episode.has_critic ? make("span", { class: "is-value" }, "critic's value") : null,
        returns.some((value) => value !== null) ? make("span", { class: "is-return" }, "return that followed") : null,
        make("span", { class: "tp-axis" }, "by turn")), drawing.svg);
    }

    drawMore(turn, index) {
      const fold = (name, title, text) => {
        const box = make("details", { open: this.opened && this.opened[name], ontoggle: () => (this.opened[name] = box.open) },
          make("summary", {}, title), make("pre", { tabindex: 0 }, text));
        return box;
      };
      const record = this.episode.record;
      const parts = turn.prompt && !turn.is_waiting ? [
        fold("prompt", `Prompt of turn ${index + 1}`, turn.prompt),
        fold("response", `Response of turn ${index + 1}`, turn.response || "(empty)")] : [];
      if (record) parts.push(make("button", { type: "button", class: "tp-download",
        onclick: () => download(`trajectory-${record.seed}.json`, record) }, "Download trajectory (JSON)"));
      this.more.replaceChildren(...parts);
    }
  }
  customElements.define("turn-player", TurnPlayer);

  // Two episodes side by side, played together.
  class TurnDuel extends HTMLElement {
    show(pair) {
      if (!this.players) {
        this.players = [make("turn-player", { class: "is-narrow" }), make("turn-player", { class: "is-narrow" })];
        this.both = make("button", { type: "button", class: "tp-both",
          onclick: () => this.players.forEach((player) => player.episode && (player.go(0), player.play())) }, "Play both");
        this.replaceChildren(this.both, make("div", { class: "td" }, ...this.players));
      }
      const episodes = pair ? [pair.left, pair.right] : [null, null];
      this.hidden = !episodes.some(Boolean);
      this.players.forEach((player, number) => {
        player.hidden = !episodes[number];
        player.show(episodes[number]);
      });
    }
  }
  customElements.define("turn-duel", TurnDuel);
})();
