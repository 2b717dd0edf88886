// Goes on in the function that base.js opens and views.js ends.
  // ---- overview -----------------------------------------------------------------------------------------------
  const runsTable = document.getElementById("runs");
  const startOverview = () => {
    const body = runsTable.tBodies[0];
    const rows = [...body.rows];
    const text = document.getElementById("filter-text");
    const selects = [...document.querySelectorAll("#filters select")];
    const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    const filter = () => {
      const wanted = text.value.trim().toLowerCase().split(/\s+/);
      let n = 0;
      for (const row of rows) {
        row.hidden = !(wanted.every((word) => words.get(row).includes(word)) && selects.every((one) => one.value === "" || row.dataset[one.dataset.column] === one.value));
        n += !row.hidden;
      }
      document.getElementById("count").textContent = n === rows.length ? `${n} runs` : `${n} of ${rows.length} runs`;
    };
    text.addEventListener("input", filter);
    selects.forEach((one) => one.addEventListener("change", filter));
    const form = document.getElementById("filters");
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(filter));
    document.querySelectorAll(".cell").forEach((cell) => cell.addEventListener("click", () => {
      for (const one of selects) one.value = cell.dataset[one.dataset.column] ?? "";
      filter();
      runsTable.scrollIntoView({ block: "nearest" });
    }));
    const headers = [...runsTable.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      const button = header.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const down = header.getAttribute("aria-sort") === "ascending";
        headers.forEach((one) => one.hasAttribute("aria-sort") && one.setAttribute("aria-sort", "none"));
        header.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => {
          const cell = row.cells[column];
          if (!cell || cell.colSpan > 1) return null;
          if (button.dataset.kind === "number") return cell.dataset.value === "" ? null : Number(cell.dataset.value);
          return cell.textContent.trim().toLowerCase();
        };
        const sign = down ? -1 : 1;
        rows.sort((a, b) => {
          const [x, y] = [key(a), key(b)];
          if (x === null || y === null) return (x === null) - (y === null); // missing last, either way
          return sign * (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true })); // step-4 before step-16
        });
        body.append(...rows);
      });
    });
    const picks = [...document.querySelectorAll(".pick")];
    picks.forEach((pick) => pick.addEventListener("change", () => {
      const chosen = picks.filter((one) => one.checked).map((one) => Number(one.closest("tr").dataset.index));
      if (chosen.length === 2) { picks.forEach((one) => (one.checked = false)); location.hash = `compare-${chosen[0]}-${chosen[1]}`; }
    }));
    filter();
  };
  const drawGroups = () => {
    const box = document.getElementById("seed-groups");
    if (box.hasChildNodes()) return;
    const groups = block("seeds");
    if (!groups.length) return;
    box.append(make("h2", {}, "Agreement between seeds"));
    const pick = make("select", { "data-role": "seed-group" }, ...groups.map((group, i) =>
      make("option", { value: String(i) }, block(`run-${group.runs[0]}`).label.replace(/ · seed .*/, ""))));
    const at = make("div");
    const draw = () => { clear(at); place(at, seedsChart(groups[Number(pick.value)])); };
    pick.addEventListener("change", draw);
    box.append(make("div", { className: "filters" }, make("label", {}, "runs", pick)), at);
    draw();
  };

  // Several groups of runs, one of them shown at a time.
  const drawCompared = (id, where, title, note, draw) => {
    const box = document.getElementById(where), groups = block(id);
    if (box.hasChildNodes() || !groups.length) return;
    const pick = make("select", { "data-role": id }, ...groups.map((group, i) => make("option", { value: String(i) }, shown(group.label))));
    const at = make("div");
    const update = () => { clear(at); draw(at, groups[Number(pick.value)]); };
    pick.addEventListener("change", update);
    box.append(make("h2", {}, title), make("p", { className: "lead" }, note), make("div", { className: "filters" }, make("label", {}, "runs", pick)), at);
    update();
  };
  const times = (names, counts) => names.map((name, i) => `${shown(name)} (${counts[i]})`).join(", ");
  const matrixTable = (group, columns, what) => () => {
    const values = decode(group.matrix.data[0].customdata);
    return table(`${what} by head`, ["head", ...columns.map(shown)], group.heads.map((head, i) =>
      [head, ...columns.map((_, j) => values[2 * (i * columns.length + j)])]));
  };
  const drawCheckpoints = () => drawCompared("checkpoints", "checkpoint-groups", "Along checkpoints",
    "How the scores of the strongest heads move along the checkpoints of one model: means over seeds and draws of prompts.", (at, group) => {
      place(at,
        chart({ figure: group.lines, name: "checkpoint lines", wide: true,
          alt: `Scores of ${group.lines.data.length} heads along ${group.checkpoints.length} checkpoints`,
          caption: `Checkpoints, and runs of each: ${times(group.checkpoints, group.n_runs)}.`
            + (group.lines.data.some((line) => line.error_y) ? " Bars: 95% intervals of the scores over draws of the pairs." : ""),
          table: () => curveTable(group.lines) }),
        chart({ figure: group.matrix, name: "checkpoint matrix", wide: true,
          alt: `Matrix of ${group.heads.length} heads by ${group.checkpoints.length} checkpoints: score`,
          caption: "Heads by checkpoints, those of largest score anywhere first; hovering tells in how many runs' circuits a head is.",
          table: matrixTable(group, group.checkpoints, "Score") }));
    });
  const drawTasks = () => drawCompared("tasks", "task-groups", "Across tasks",
    "Which heads tasks share: those in the circuit of at least half of a task's runs. Specificity is 0 where scores are alike in all tasks, 1 where one task has them alone (tau).", (at, group) => {
      const shared = group.of.filter((tasks) => tasks.length === group.tasks.length).length;
      const own = group.of.filter((tasks) => tasks.length === 1).length;
      at.append(make("p", { "data-role": "shared" }, `Of ${group.heads.length} heads ${shared} are shared by all ${group.tasks.length} tasks, ${own} belong to one.`));
      place(at, chart({ figure: group.matrix, name: "task matrix", wide: true,
        alt: `Matrix of ${group.heads.length} heads by ${group.tasks.length} tasks: consensus`,
        caption: `Share of runs whose circuit has the head. Tasks, and runs of each: ${times(group.tasks, group.n_runs)}.`,
        table: matrixTable(group, group.tasks, "Consensus") }));
      at.append(inBox(table("Heads and the tasks they belong to", ["head", "specificity", "tasks"],
        group.heads.map((head, i) => [head, group.specificity[i], foreign(group.of[i].join(", "))])), "Heads and their tasks"));
    });

  // ---- comparison ---------------------------------------------------------------------------------------------
  const ranks = (values) => {
    const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]);
    const found = new Array(values.length);
    for (let i = 0; i < order.length;) {
      let j = i;
      while (j + 1 < order.length && values[order[j + 1]] === values[order[i]]) j++;
      for (let k = i; k <= j; k++) found[order[k]] = (i + j) / 2 + 1;
      i = j + 1;
    }
    return found;
  };
  const correlation = (x, y) => {
    const mean = (v) => v.reduce((a, b) => a + b, 0) / v.length;
    const [mx, my] = [mean(x), mean(y)];
    let xy = 0, xx = 0, yy = 0;
    x.forEach((value, i) => { xy += (value - mx) * (y[i] - my); xx += (value - mx) ** 2; yy += (y[i] - my) ** 2; });
    return xx && yy ? xy / Math.sqrt(xx * yy) : NaN;
  };
  const showComparison = (first, second) => {
    const box = document.getElementById("comparison");
    clear(box);
    const indices = [first, second], runs = indices.map((i) => block(`run-${i}`));
    const sets = runs.map((run) => new Map(run.chosen.map((head, i) => [head.name, { ...head, rank: i + 1 }])));
    const shared = [...sets[0].keys()].filter((name) => sets[1].has(name));
    const same = runs[0].shape.join() === runs[1].shape.join();
    const lines = [`${shared.length} chosen heads in both, ${sets[0].size - shared.length} only in the first, ${sets[1].size - shared.length} only in the second.`];
    let values = null;
    if (same) {
      values = runs.map((run) => headValues(run.heads.score));
      lines.push(`Rank correlation of all scores (Spearman): ${number(correlation(ranks(values[0]), ranks(values[1])))}.`);
    } else lines.push("The models differ in shape: heads of one name are different heads.");
    box.append(make("p", { "data-role": "agreement" }, lines.join(" ")));
    const columns = runs.map((run, i) => make("div", {}, make("h2", {}, make("a", { href: `#run-${indices[i]}` }, foreign(label(indices[i])))),
      make("p", { className: "lead" }, checkLine(run.check)), ...warnings(run)));
    box.append(make("div", { className: "pair" }, ...columns));
    runs.forEach((run, i) => place(columns[i], headsChart(run, "score", null), circuitChart(run, null)));
    const union = [...new Set([...sets[0].keys(), ...sets[1].keys()])];
    box.append(make("h2", {}, "Chosen heads of either"), inBox(table("Rank and score in each run; – where a head is not chosen",
      ["head", "rank, first", "score, first", "rank, second", "score, second", "in"],
      union.map((name) => { const [a, b] = sets.map((set) => set.get(name));
        return [name, a ? a.rank : null, a ? a.values.score : null, b ? b.rank : null, b ? b.values.score : null, a && b ? "both" : a ? "first" : "second"]; })), "Chosen heads of either"));
    if (same) {
      const [nLayers] = runs[0].shape;
      const names = values[0].map((_, i) => `a${i % nLayers}.h${Math.floor(i / nLayers)}`);
      const kind = (name) => (sets[0].has(name) ? 1 : 0) + (sets[1].has(name) ? 2 : 0);
      const kinds = [["in neither", "#8a8f98", "circle-open"], ["first only", "#0072b2", "square"], ["second only", "#d55e00", "diamond"], ["both", "#009e73", "circle"]];
      const data = kinds.map(([name, markerColor, symbol], k) => {
        const at = names.map((_, i) => i).filter((i) => kind(names[i]) === k);
        return { type: "scatter", mode: "markers", name, x: at.map((i) => values[0][i]), y: at.map((i) => values[1][i]), text: at.map((i) => names[i]),
          marker: { color: markerColor, symbol, size: k ? 9 : 6 }, hovertemplate: "%{text}<br>first %{x:.4~g}, second %{y:.4~g}<extra></extra>" };
      });
      box.append(make("h2", {}, "Scores against each other"));
      place(box, chart({ name: "comparison", figure: { data, layout: { xaxis: { title: { text: "score, first run" }, zeroline: false }, yaxis: { title: { text: "score, second run" }, zeroline: false },
        height: 420, margin: { l: 60, r: 10, t: 10, b: 44 }, legend: { orientation: "h", y: 1.1 }, hovermode: "closest" } },
        alt: `Scatter of every head's score in both runs. ${lines.join(" ")}`,
        table: () => table("Scores in both runs", ["head", "first", "second"], names.map((name, i) => [name, values[0][i], values[1][i]])) }));
    }
  };

  // ---- which view ---------------------------------------------------------------------------------------------
  const views = ["overview", "run", "compare"].map((name) => document.getElementById(`view-${name}`)).filter((section) => section);
  const show = (moved) => {
    const [name, ...rest] = location.hash.slice(1).split("-");
    const indices = rest.map(Number);
    const known = (i) => Number.isInteger(i) && block(`run-${i}`) !== null; // of many runs, not all have a view
    let view = nRuns === 1 ? "run" : "overview";
    if (nRuns > 1 && name === "run" && known(indices[0])) view = "run";
    if (nRuns > 1 && name === "compare") view = "compare";
    for (const section of views) {
      section.hidden = section.id !== `view-${view}`;
      if (section.hidden && section.id === "view-run") clear(section);
    }
    document.querySelectorAll("nav a").forEach((a) => (a.dataset.view === view ? a.setAttribute("aria-current", "page") : a.removeAttribute("aria-current")));
    if (view === "overview") drawCheckpoints(), drawTasks(), drawGroups();
    if (view === "run") showRun(nRuns === 1 ? 0 : indices[0]);
    if (view === "compare") {
      const picks = ["first", "second"].map((side) => document.getElementById(`pick-${side}`));
      const options = [...picks[0].options].map((option) => Number(option.value));
      picks.forEach((pick, i) => (pick.value = options.includes(indices[i]) ? indices[i] : options[Math.min(i, options.length - 1)]));
      if (options.length) showComparison(Number(picks[0].value), Number(picks[1].value));
    }
    if (moved) { window.scrollTo(0, 0); document.getElementById("main").focus({ preventScroll: true }); }
  };
  if (nRuns > 1) {
    startOverview();
    for (const side of ["first", "second"]) document.getElementById(`pick-${side}`).addEventListener("change", () => {
      location.hash = `compare-${document.getElementById("pick-first").value}-${document.getElementById("pick-second").value}`;
    });
  }
  addEventListener("hashchange", () => show(true));
  show(false);
  later(() => {}); // a view without charts is drawn too
  document.documentElement.dataset.ready = "yes";
})();
