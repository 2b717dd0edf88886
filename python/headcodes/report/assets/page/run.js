// Goes on in the function that base.js opens and views.js ends.
  // ---- tables -------------------------------------------------------------------------------------------------
  const inBox = (table, name) => make("div", { className: "tall", tabIndex: 0, role: "region", "aria-label": name }, table);
  const table = (caption, head, rows) =>
    make("table", {},
      make("caption", {}, caption),
      make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((value, i) =>
        i === 0
          ? make("th", { scope: "row" }, value)
          : make("td", { className: typeof value === "number" || value === null ? "number" : "" },
              typeof value === "number" || value === null ? number(value) : value))))));

  const headValues = (figure) => {
    const values = decode(figure.data[0].customdata);
    return Array.from({ length: values.length / 2 }, (_, i) => values[2 * i]); // heads x layers, then (value, rank)
  };
  const headsTable = (run, what) => {
    const [nLayers, nHeads] = run.shape;
    const values = headValues(run.heads[what]);
    const heads = Array.from({ length: nHeads }, (_, head) => `h${head}`);
    const rows = Array.from({ length: nLayers }, (_, layer) => [`layer ${layer}`, ...heads.map((_, head) => values[head * nLayers + layer])]);
    return table(`${what} of every head`, ["layer", ...heads], rows);
  };
  const headStops = (run, what) => {
    const [nLayers, nHeads] = run.shape;
    const values = decode(run.heads[what].data[0].customdata);
    const stops = [];
    for (let layer = 0; layer < nLayers; layer++) for (let head = 0; head < nHeads; head++) {
      const i = head * nLayers + layer;
      stops.push({ curve: 0, point: [head, layer], head: `a${layer}.h${head}`,
        text: `a${layer}.h${head}: ${what} ${number(values[2 * i])}, rank ${values[2 * i + 1]} of ${nLayers * nHeads}` });
    }
    stops.perColumn = nHeads;
    return stops;
  };

  // ---- parts of a run -----------------------------------------------------------------------------------------
  const headsChart = (run, what, choose) => {
    const best = run.chosen.slice(0, 3).map((head) => head.name).join(", ");
    return chart({
      figure: run.heads[what], name: `${what} of heads`, choose, wide: run.shape[0] > 16,
      alt: `Heat map, ${run.shape[0]} layers by ${run.shape[1]} heads: ${what} of every head. ${run.chosen.length} heads are chosen${best ? `, the best are ${best}` : ""}.`,
      caption: `Framed: the chosen heads. Arrow keys walk through the heads${choose ? ", Enter or a click chooses one" : ""}.`,
      table: () => headsTable(run, what), stops: headStops(run, what),
    });
  };
  const circuitChart = (run, choose) => {
    const last = run.circuit.data.length - 1;
    const strongest = run.edges.length ? `, the strongest from ${run.edges[0][0]} to ${run.edges[0][1]}` : "";
    const stops = run.circuit.data[last].customdata.map((head, i) => {
      const known = run.chosen.find((one) => one.name === head);
      const to = run.edges.filter((edge) => edge[0] === head).map((edge) => edge[1]);
      return { curve: last, point: i, head, text: `${head}${known ? `: score ${number(known.values.score)}` : ""}${to.length ? `, feeds ${to.join(", ")}` : ""}` };
    });
    return chart({
      figure: run.circuit, name: "circuit", wide: true, zoom: true, choose, stops,
      alt: `Layered graph of the circuit: ${run.chosen.length} heads and ${run.edges.length} edges${strongest}.`,
      caption: run.edges.length
        ? "Data flows from left to right; within a layer heads stand where lines cross least. Wider lines: larger effects (scores where no path was patched), dotted where negative; faint: patched and not confirmed. Their diamonds tell more. A mouse drags to zoom."
        : run.level === "node" ? "Each head stands at its own number. No edges: at node level only heads are scored. Run with --level edge to score pairs of heads."
          : "Each head stands at its own number. No edges: no pair of the chosen heads has a score above 0.",
      table: () => run.edges.length
        ? table("Edges, strongest first", ["from", "to", run.edge_columns.includes("95% from") ? "effect" : "score", ...run.edge_columns], run.edges)
        : table("Heads", ["head", "score"], run.chosen.map((head) => [head.name, head.values.score])),
    });
  };
  const chosenTable = (run, choose) => {
    const names = run.chosen.length ? Object.keys(run.chosen[0].values) : [];
    const hasCodes = run.chosen.some((head) => head.unique !== null);
    const intervals = Object.keys(run.intervals).length > 0;
    const hasUsed = run.chosen.some((head) => head.codes);
    const interval = (name) => (run.intervals[name] ? `${number(run.intervals[name][0])} to ${number(run.intervals[name][1])}` : "–");
    const rows = run.chosen.map((head, i) => [
      String(i + 1),
      choose ? make("button", { type: "button", className: "link", on: { click: () => choose(head.name, true) } }, head.name) : head.name,
      ...names.map((name) => head.values[name]),
      ...(intervals ? [interval(head.name)] : []),
      ...(hasUsed ? head.codes || ["–", "–"] : []),
      ...(hasCodes ? [head.unique] : []),
    ]);
    return inBox(table("Chosen heads, best first", ["rank", "head", ...names, ...(intervals ? ["95% interval of the effect"] : []), ...(hasUsed ? ["codes on clean prompts", "codes on corrupted prompts"] : []), ...(hasCodes ? ["codes only in positives"] : [])], rows), "Chosen heads");
  };

  const codeBrowser = (run, detail) => {
    const prompts = detail.prompts ? block(detail.prompts) : null;
    const half = detail.n_prompt / 2;
    const scored = detail.scored_prompts ? decode(detail.scored_prompts) : null;
    const side = (i) => (i < half ? "clean" : "corrupt");
    const text = (i) => (prompts ? prompts[side(i)][i % half] : `${side(i)} prompt ${(i % half) + 1}`);
    const heads = Object.keys(detail.codes);
    const select = make("select", { "data-role": "code-head" }, ...heads.map((head) => make("option", { value: head }, head)));
    const filter = make("input", { type: "search", autocomplete: "off", "data-role": "code-filter", placeholder: "all prompts" });
    const status = make("p", { className: "quiet", role: "status" });
    const box = make("div", { className: "tall codes", tabIndex: 0, role: "region", "aria-label": "Codes" });
    const list = (rows) => rows.length === 0 ? make("p", { className: "quiet" }, "none") :
      make("ul", { className: "prompts" }, ...rows.map((i) => make("li", { className: scored && !scored[i] ? "unseen" : "" },
        foreign(text(i), "prompt"), scored && !scored[i] ? make("span", { className: "quiet" }, "trained on, not counted") : null)));
    const bar = (count, most, name) => {
      const element = make("span", { className: `bar ${name}`, "aria-hidden": "true" });
      element.style.setProperty("--share", count / most);
      return element;
    };
    const update = () => {
      const codes = decode(detail.codes[select.value]);
      const words = filter.value.trim().toLowerCase();
      const found = new Map();
      let matching = 0;
      for (let i = 0; i < codes.length; i++) {
        if (words && !text(i).toLowerCase().includes(words)) continue;
        matching++;
        if (!found.has(codes[i])) found.set(codes[i], { clean: [], corrupt: [], counts: { clean: 0, corrupt: 0 } });
        const entry = found.get(codes[i]);
        entry[side(i)].push(i);
        if (!scored || scored[i]) entry.counts[side(i)]++;
      }
      const rows = [...found].sort(([, a], [, b]) => b.counts.clean - b.counts.corrupt - (a.counts.clean - a.counts.corrupt) || b.clean.length - a.clean.length);
      const most = Math.max(1, ...rows.map(([, entry]) => Math.max(entry.counts.clean, entry.counts.corrupt)));
      const body = make("tbody");
      for (const [code, entry] of rows) {
        const { clean, corrupt } = entry.counts;
        const only = code >= 0 && clean > 0 && corrupt === 0 && !words;
        const more = make("tr", { hidden: true }, make("td", { colSpan: 5 }));
        const open = make("button", { type: "button", "aria-expanded": "false", on: { click: () => {
          const opening = more.hidden;
          if (opening && !more.firstChild.hasChildNodes()) more.firstChild.append(make("div", { className: "pair" },
            make("div", {}, make("h3", {}, `Positives (${entry.clean.length})`), list(entry.clean)),
            make("div", {}, make("h3", {}, `Negatives (${entry.corrupt.length})`), list(entry.corrupt))));
          more.hidden = !opening;
          open.setAttribute("aria-expanded", String(opening));
        } } }, "prompts");
        open.setAttribute("aria-label", `Prompts that fire code ${code}`);
        body.append(make("tr", { className: only ? "only" : "" },
          make("th", { scope: "row" }, code < 0 ? "none active" : String(code)),
          make("td", {}, bar(clean, most, "clean"), ` ${clean}`),
          make("td", {}, bar(corrupt, most, "corrupt"), ` ${corrupt}`),
          make("td", {}, only ? "positives only" : clean === 0 && corrupt > 0 && !words ? "negatives only" : ""),
          make("td", {}, open)), more);
      }
      box.replaceChildren(make("table", {}, make("caption", {}, `Codes of ${select.value}`),
        make("thead", {}, make("tr", {}, ...["code", "positives", "negatives", "where", "prompts"].map((name) => make("th", { scope: "col" }, name)))), body));
      status.textContent = `${rows.length} codes in ${matching} of ${codes.length} prompts`;
    };
    select.addEventListener("change", update);
    filter.addEventListener("input", update);
    update();
    const element = make("div", {},
      make("div", { className: "filters" }, make("label", {}, "head", select), prompts ? make("label", {}, "prompts with", filter) : null), status, box);
    element.choose = (head) => heads.includes(head) && ((select.value = head), update(), true);
    return element;
  };

  // Where in the prompt a head matters: a bar a place, above 0 where it helps.
  const positionsBrowser = (positions) => {
    const { kind, labels, examples, scores } = positions;
    const heads = Object.keys(scores);
    const pick = make("select", { "data-role": "position-head" }, ...heads.map((head) => make("option", { value: head }, head)));
    const box = make("div", {});
    const named = (i) => (examples.length ? (kind === "token" ? `${i}: ${shown(examples[i])}` : `${labels[i]} (${shown(examples[i].trim())})`) : labels[i]);
    const ticks = labels.map((label, i) => plain(kind === "token" ? named(i) : label));
    const update = () => {
      clear(box);
      const values = scores[pick.value];
      const most = values.reduce((best, value, i) => (Math.abs(value) > Math.abs(values[best]) ? i : best), 0);
      const [below, above] = block("scales").signs;
      place(box, chart({
        name: `scores of ${pick.value} by place`, wide: true, least: 120 + 26 * labels.length,
        alt: `Bar chart of the score of ${pick.value} at ${labels.length} places of the prompt. It is largest at ${named(most)}: ${number(values[most])}.`,
        caption: { token: "Places are tokens; shown are those of the first prompt.", run: "Places are runs of tokens that change between the two prompts, what lies between them, and the last token.",
          group: "Prompts differ in what changes: tokens that do, those between the first of these and the last, and the last." }[kind],
        figure: {
          data: [{ type: "bar", x: [...labels.keys()], y: values, customdata: labels.map((_, i) => plain(named(i))),
            marker: { color: values.map((value) => (value < 0 ? below : above)) }, hovertemplate: "%{customdata}<br>%{y:.4~g}<extra></extra>" }],
          layout: { xaxis: { tickvals: [...labels.keys()], ticktext: ticks, tickangle: labels.length > 4 ? -60 : 0, showgrid: false, ticks: "" },
            yaxis: { title: { text: "score" } }, height: 320, margin: { l: 60, r: 10, t: 10, b: labels.length > 4 ? 110 : 50 } },
        },
        table: () => table("Score by place", ["place", "score"], values.map((value, i) => [foreign(named(i)), value])),
      }));
    };
    pick.addEventListener("change", update);
    const element = make("div", {}, make("div", { className: "filters" }, make("label", {}, "head", pick)), box);
    element.start = update;
    element.choose = (head) => heads.includes(head) && ((pick.value = head), update());
    return element;
  };

  const attentionBrowser = (detail) => {
    const examples = detail.attention;
    const heads = Object.keys(examples[0].patterns);
    const pickHead = make("select", { "data-role": "attention-head" }, ...heads.map((head) => make("option", { value: head }, head)));
    const pickPrompt = make("select", { "data-role": "attention-prompt" }, ...examples.map((example, i) =>
      make("option", { value: String(i) }, `${example.side === "clean" ? "positive" : "negative"} of pair ${example.index + 1}`)));
    const prompt = make("p", {});
    const box = make("div", {});
    const update = () => {
      clear(box);
      const example = examples[Number(pickPrompt.value)];
      const flat = decode(example.patterns[pickHead.value]);
      const n = example.tokens.length;
      const z = [];
      for (let row = 0, i = 0; row < n; row++) z.push(Array.from({ length: n }, (_, column) => (column <= row ? flat[i++] / 255 : null)));
      prompt.replaceChildren(foreign(example.tokens.join(""), "prompt"));
      const names = example.tokens.map((token) => plain(token));
      const axis = { tickvals: [...z.keys()], ticktext: names, showgrid: false, zeroline: false, ticks: "" };
      const strongest = z.map((row, i) => row.slice(0, i + 1).map((value, j) => [value, j]).sort((a, b) => b[0] - a[0]).slice(0, 3));
      const lastToken = strongest[n - 1].map(([value, j]) => `${shown(example.tokens[j])} (${percent(value)})`).join(", ");
      place(box, chart({
        name: "attention pattern", wide: true, least: 190 + 18 * n, small: n <= 24,
        alt: `Heat map of the attention of ${pickHead.value} over ${n} tokens. The last token looks at ${lastToken}.`,
        caption: "Rows: the token that looks. Columns: the token looked at.",
        figure: {
          data: [{ type: "heatmap", z, zmin: 0, zmax: 1, xgap: 1, ygap: 1, hoverongaps: false,
            customdata: z.map((row, i) => row.map((_, j) => `${names[i]} looks at ${names[j]}`)),
            hovertemplate: "%{customdata}<br>%{z:.1%}<extra></extra>", colorscale: block("scales").sequential,
            colorbar: { title: { text: "attention", side: "right" }, thickness: 12, outlinewidth: 0, tickformat: ".0%" } }],
          layout: { xaxis: { ...axis, tickangle: -60, side: "bottom" }, yaxis: { ...axis, autorange: "reversed" },
            height: Math.min(900, 150 + Math.max(18, 220 / n) * n), margin: { l: 90, r: 10, t: 10, b: 90 } },
        },
        table: () => table("The three tokens each token looks at most", ["token", "first", "second", "third"],
          strongest.map((row, i) => [foreign(`${i}: ${shown(example.tokens[i])}`), ...row.map(([value, j]) => foreign(`${shown(example.tokens[j])} ${percent(value)}`))])),
      }));
    };
    pickHead.addEventListener("change", update);
    pickPrompt.addEventListener("change", update);
    const element = make("div", {}, make("div", { className: "filters" }, make("label", {}, "head", pickHead), make("label", {}, "prompt", pickPrompt)), prompt, box);
    element.start = update;
    element.choose = (head) => heads.includes(head) && ((pickHead.value = head), update());
    return element;
  };

  const curveTable = (figure) => {
    const rows = figure.data.filter((line) => line.name && line.hoverinfo !== "skip").flatMap((line) => line.x.map((x, i) => [line.name, x, line.y[i]]));
    return table("Points of the curves", ["curve", figure.layout.xaxis.title.text, figure.layout.yaxis.title.text], rows);
  };
  const seedsChart = (group) => chart({
    figure: group.figure, name: "seed spread", wide: true,
    alt: `Scores of the best heads under ${group.seeds.length} seeds. Their circuits share ${percent(group.agreement)} of their heads on average.`,
    caption: `Seeds ${group.seeds.join(", ")}: the chosen heads of two seeds share ${percent(group.agreement)} of their heads on average (intersection over union).`,
    table: () => table("Scores by seed", ["head", ...group.figure.data.map((line) => line.name)],
      group.figure.data[0].x.map((head, i) => [head, ...group.figure.data.map((line) => line.y[i])])),
  });
  const warnings = (run) => {
    const found = [];
    const share = run.check.share_right;
    if (share !== undefined && share < 0.8)
      found.push(make("p", { className: "warning" }, `The model answers only ${percent(share)} of the positive prompts right: it hardly does this task, and its circuit may mean nothing.`));
    if (run.left_out) found.push(make("p", { className: "warning" }, "Prompts, codes and attention of this run were left out to keep this file small. Report on fewer runs to see them."));
    return found;
  };
  const checkLine = (check) => check.share_right === undefined ? "" :
    `Task check: ${percent(check.share_right)} of ${number(check.n_pairs)} positives right; logit difference ${number(check.positive_logit_diff)} in positives, ${number(check.negative_logit_diff)} in negatives.`;

  const showRun = (index) => {
    const view = document.getElementById("view-run");
    clear(view);
    const run = block(`run-${index}`);
    view.append(make("h1", {}, foreign(run.label)));
    if (run.error !== null) {
      view.append(make("p", { className: "error" }, "This run failed: ", foreign(run.error)));
      return;
    }
    view.append(make("p", { className: "lead" }, checkLine(run.check)), ...warnings(run));
    const detail = run.detail ? block(run.detail) : null;
    let codes = null, attention = null, codesTitle = null, positions = null;
    const choose = (head, go) => {
      if (positions) positions.choose(head);
      if (codes) codes.choose(head);
      if (attention) attention.choose(head);
      if (go && (codesTitle || attention)) (codesTitle || attention).scrollIntoView({ block: "start" }), codesTitle && codesTitle.focus({ preventScroll: true });
    };
    const placed = run.positions && Object.keys(run.positions.scores).length > 0;
    const link = detail || placed ? choose : null;

    view.append(make("h2", {}, "Heads"));
    const left = make("div"), map = make("div");
    const pick = make("select", { "data-role": "quantity" }, ...Object.keys(run.heads).map((what) => make("option", {}, what)));
    const drawHeads = () => { clear(map); place(map, headsChart(run, pick.value, link)); };
    pick.addEventListener("change", drawHeads);
    if (pick.options.length > 1) left.append(make("div", { className: "filters" }, make("label", {}, "show", pick)));
    left.append(map);
    if ("q-value" in run.heads) left.append(make("p", { className: "quiet" },
      "p and q say how surely a head's codes differ between the sides. That is not membership in the circuit: a head may differ and matter for nothing."));
    if (run.seeds) left.append(make("p", { className: "quiet" },
      `Scores are means over ${run.seeds.seeds.length} seeds. Spread: their standard deviation. Consensus: the share of seeds whose own circuit has the head.`));
    view.append(make("div", { className: "split" }, left, chosenTable(run, link)));
    drawHeads();

    view.append(make("h2", {}, "Circuit"));
    place(view, circuitChart(run, link));

    if (placed) {
      positions = positionsBrowser(run.positions);
      view.append(make("h2", {}, "Where in the prompt"), positions);
      positions.start();
    }
    if (detail && detail.codes && Object.keys(detail.codes).length) {
      codesTitle = make("h2", { tabIndex: -1 }, "Codes");
      codes = codeBrowser(run, detail);
      view.append(codesTitle, make("p", { className: "lead" }, `A head's code on a prompt is its strongest latent${run.seeds ? " (here of the first seed)" : ""}. The published method's score is the number of codes that occur in positives and in no negative.`), codes);
    }
    if (detail && detail.attention && Object.keys(detail.attention[0].patterns).length) {
      attention = attentionBrowser(detail);
      view.append(make("h2", {}, "Attention"), attention);
      attention.start();
    }
    if (Object.keys(run.curves).length) {
      view.append(make("h2", {}, "Against a truth"));
      const grid = make("div", { className: "pair" });
      view.append(grid);
      for (const [kind, figure] of Object.entries(run.curves)) place(grid, chart({
        figure, name: `${kind} curve`, alt: `${kind} curve: ${figure.data.filter((line) => line.name).map((line) => line.name).join("; ")}.`, caption: kind, table: () => curveTable(figure) }));
    }
    const group = run.seeds || block("seeds").find((one) => one.runs.includes(index));
    if (group) { view.append(make("h2", {}, "Spread over seeds")); place(view, seedsChart(group)); }
    if (run.timings) {
      view.append(make("h2", {}, "Time"));
      const bars = run.timings.data[0];
      place(view, chart({ figure: run.timings, name: "timings", small: true, alt: `Seconds a stage: ${bars.y.map((stage, i) => `${stage} ${bars.text[i]}`).join(", ")}.`,
        table: () => table("Seconds a stage", ["stage", "seconds"], bars.y.map((stage, i) => [stage, bars.x[i]])) }));
    }
    if (run.absent.length) {
      view.append(make("h2", {}, "What is not here"), make("ul", { className: "absent" }, ...run.absent.map(([why, how]) =>
        make("li", {}, why, how === null ? null : make("pre", { className: "command", tabIndex: 0 }, foreign(how))))));
    }
    view.append(make("h2", {}, "Where it comes from"), make("pre", { className: "command", tabIndex: 0 }, foreign(run.command)));
    const copied = make("span", { role: "status", className: "quiet" });
    view.append(make("div", { className: "tools" }, make("button", { type: "button", on: { click: () => {
      const area = make("textarea", { value: run.command, "aria-label": "command" });
      view.append(area); area.select(); document.execCommand("copy"); area.remove();
      copied.textContent = "copied";
    } } }, "Copy the command"), copied));
    view.append(make("dl", {}, ...run.facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, foreign(value))])));
  };

