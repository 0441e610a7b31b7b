// The page without a server: what `content.json` holds in, the same elements as those of the Space out.
(async () => {
  const content = await (await fetch("content.json")).json();
  const query = new URLSearchParams(location.search);
  const { replays, best, scores } = content;
  const sokoban = replays.filter((replay) => replay.group === "Sokoban");
  const unique = (list) => [...new Set(list)];

  const menu = (label, choices, chosen, change) => {
    const select = make("select", { onchange: () => change(select.value) },
      ...choices.map(([value, text]) => make("option", { value, selected: value === chosen }, text)));
    return make("label", {}, label, select);
  };
  const menus = (...items) => make("div", { class: "sp-menus" }, ...items);

  const replayPage = (page) => {
    const player = make("turn-player");
    const row = make("div");
    const show = (key) => {
      const chosen = replays.find((replay) => replay.key === key) || replays[0];
      const own = replays.filter((replay) => replay.agent === chosen.agent);
      row.replaceChildren(menus(
        menu("Agent", unique(replays.map((replay) => replay.agent)).map((name) => [name, name]), chosen.agent,
          (name) => show(replays.find((replay) => replay.agent === name).key)),
        menu("Episode", own.map((replay) => [replay.key, replay.label]), chosen.key, show)));
      player.show(chosen.view);
      setLink({ episode: chosen.key });
    };
    page.append(row, player);
    show(query.get("episode"));
  };

  const gamePage = (page) => {
    const game = make("sokoban-game"), table = make("score-table");
    const tasks = unique(sokoban.map((replay) => replay.task));
    const show = (task) => {
      game.show({ level: best.views[task].level, max_actions: content.max_actions });
      table.show([]);
      game.task = task;
    };
    game.addEventListener("finished", (event) => {
      const solved = sokobanSolved(game.rows), moves = event.detail.moves.length;
      const total = (solved ? 11 : 0) - moves / 10;  // of levels with one box
      const theirs = sokoban.filter((replay) => replay.task === game.task).map((replay) => scores[replay.key]);
      const ideal = best.views[game.task];
      table.show([{ name: "you", solved, moves, total }, ...theirs,
        { name: best.name, solved: ideal.solved, moves: ideal.turns.flatMap((turn) => turn.moves).length, total: ideal.total }]);
    });
    page.append(menus(menu("Level", tasks.map((task) => [task, task]), tasks[0], show)), game, table);
    show(tasks[0]);
  };

  const comparePage = (page) => {
    const duel = make("turn-duel");
    const names = [...unique(sokoban.map((replay) => replay.agent)), best.name];
    const tasks = unique(sokoban.map((replay) => replay.task));
    const chosen = { left: names[0], right: names[2] || best.name, task: tasks[0] };
    const view = (name) => name === best.name ? best.views[chosen.task]
      : sokoban.find((replay) => replay.agent === name && replay.task === chosen.task).view;
    const set = (key) => (value) => {
      chosen[key] = value;
      duel.show({ left: view(chosen.left), right: view(chosen.right) });
    };
    const pairs = (list) => list.map((name) => [name, name]);
    page.append(menus(menu("Left", pairs(names), chosen.left, set("left")), menu("Right", pairs(names), chosen.right, set("right")),
      menu("Level", pairs(tasks), chosen.task, set("task"))), duel);
    set("task")(tasks[0]);
  };

  const trainingPage = (page) => {
    const view = make("training-view");
    page.append(view);
    view.show(content.training);
  };

  const pages = { Replay: replayPage, "You play": gamePage, Compare: comparePage, Training: trainingPage };
  const main = document.querySelector("main"), nav = document.querySelector("nav");
  const open = (name) => {
    nav.querySelectorAll("button").forEach((tab) => tab.setAttribute("aria-selected", String(tab.textContent === name)));
    const page = make("section", { role: "tabpanel", "aria-label": name });
    main.replaceChildren(page);
    pages[name](page);
  };
  nav.append(...Object.keys(pages).map((name) => make("button", { type: "button", role: "tab", onclick: () => open(name) }, name)));
  openLink();
  open("Replay");
})();
