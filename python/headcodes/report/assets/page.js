"use strict";
// Text from runs is data: it reaches the page as text nodes only, and plotly only through plain().
(() => {
  const parsed = new Map();
  const block = (id) => {
    if (!parsed.has(id)) {
      const element = document.getElementById(id);
      parsed.set(id, element ? JSON.parse(element.textContent) : null);
    }
    return parsed.get(id);
  };
  const nRuns = document.querySelectorAll('script[id^="run-"]').length;
  const label = (index) => (nRuns > 1 ? `${index + 1}: ` : "") + block(`run-${index}`).label;

  const make = (tag, properties = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (value === undefined || value === null) continue;
      if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
      else if (name in element && !name.startsWith("aria")) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };
  const foreign = (text, className) => make("bdi", { className }, String(text));

  const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
  const shown = (text) =>
    text.replace(INVISIBLE, (c) => (c === "\n" ? "⏎" : `[U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`));
  const plain = (text) => shown(text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"));
  const number = (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
  };
  const percent = (share) => `${(100 * share).toFixed(1)}%`;

  const KINDS = { f4: Float32Array, f8: Float64Array, i2: Int16Array, i4: Int32Array, u1: Uint8Array };
  const decode = (array) => {
    if (Array.isArray(array)) return array;
    const bytes = Uint8Array.from(atob(array.bdata), (c) => c.charCodeAt(0));
    return new KINDS[array.dtype](bytes.buffer);
  };

  // ---- charts -------------------------------------------------------------------------------------------------
  // Words first: plotly is 4.8 MB of script, so it is read after the page can be used, and charts are drawn one a task.
  // A chart waits until it comes near the screen: most of a long page is never looked at.
  const charts = new Set();
  const queue = [];
  let working = false;
  const waiting = new Map(); // plot -> how to begin
  const unseen = new Set(); // plots whose place on the screen is not known yet
  const work = () => {
    const job = queue.shift();
    if (job) { setTimeout(work); job(); return; }
    working = false;
    if (!unseen.size) document.documentElement.dataset.drawn = "yes";
  };
  const later = (job) => {
    document.documentElement.dataset.drawn = "no";
    if (!working) {
      working = true;
      requestAnimationFrame(() => setTimeout(work)); // the words are on the screen by then
    }
    queue.push(job);
  };
  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      unseen.delete(target);
      if (isIntersecting && waiting.has(target)) later(waiting.get(target)), forget(target);
    }
    later(() => {});
  }, { rootMargin: "300px 0px" });
  const forget = (plot) => { near.unobserve(plot); waiting.delete(plot); unseen.delete(plot); };
  const readPlotly = () => {
    if (window.Plotly) return;
    const script = document.createElement("script"); // the policy knows its hash
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
  };
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const themed = (figure) => {
    const layout = structuredClone(figure.layout);
    const [ink, grid] = [color("--ink"), color("--grid")];
    Object.assign(layout, {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, sans-serif", size: 13 },
      hoverlabel: { bgcolor: color("--paper"), bordercolor: color("--quiet"), font: { color: ink, size: 13 }, align: "left" },
      autosize: true,
    });
    for (const axis of ["xaxis", "yaxis"]) layout[axis] = { gridcolor: grid, linecolor: grid, ...layout[axis] };
    return layout;
  };
  // Keys and buttons do for everybody what a wheel and a mouse do: `stops` are the points that arrow keys visit.
  const chart = ({ figure, alt, caption, table, stops, choose, wide, least, zoom, small, name }) => {
    const plot = make("div", { className: "plot", role: "img", "aria-label": alt });
    const said = make("p", { className: "quiet", role: "status" });
    const tools = make("div", { className: "tools" });
    const button = (text, title, action) =>
      tools.append(make("button", { type: "button", title, "aria-label": title, on: { click: () => (begin(), action()) } }, text));
    const holder = make("div", { className: wide ? "wide" : "" }, plot);
    if (wide) Object.assign(holder, { tabIndex: 0 }).setAttribute("role", "group"), holder.setAttribute("aria-label", `${name}, scrolls sideways`);
    plot.style.height = `${figure.layout.height}px`;
    // plotly would take every finger for a drag and stop the page from scrolling; of a tap the browser makes a click.
    plot.addEventListener("touchstart", (event) => event.stopPropagation(), { capture: true, passive: true });
    if (least) plot.style.minWidth = `${least}px`;
    const state = { plot, draw: () => Plotly.react(plot, figure.data, themed(figure), config) };
    const begin = () => {
      if (charts.has(state) || !plot.isConnected) return;
      readPlotly();
      state.draw();
      charts.add(state);
      if (choose) plot.on("plotly_click", (event) => {
        const point = event.points[0];
        const head = point.data.type === "heatmap" ? `a${point.x}.h${point.y}` : point.customdata;
        if (head) choose(head);
      });
    };
    const config = { responsive: true, displayModeBar: false, scrollZoom: false };
    const zoomBy = (factor) => {
      const change = {};
      for (const axis of ["xaxis", "yaxis"]) {
        const [from, to] = plot._fullLayout[axis].range;
        const [middle, half] = [(from + to) / 2, ((to - from) / 2) * factor];
        change[`${axis}.range`] = [middle - half, middle + half];
      }
      Plotly.relayout(plot, change);
    };
    if (zoom) {
      button("+", "Zoom in", () => zoomBy(0.7));
      button("−", "Zoom out", () => zoomBy(1 / 0.7));
      button("Reset", "Reset the view", () => state.draw());
    }
    button("PNG", `Save ${name} as PNG`, () => Plotly.downloadImage(plot, { format: "png", scale: 2, filename: name }));
    button("SVG", `Save ${name} as SVG`, () => Plotly.downloadImage(plot, { format: "svg", filename: name }));
    let at = -1;
    const visit = (next) => {
      begin();
      at = Math.max(0, Math.min(stops.length - 1, next));
      const stop = stops[at];
      Plotly.Fx.hover(plot, [{ curveNumber: stop.curve, pointNumber: stop.point }]);
      said.textContent = stop.text;
    };
    if (stops && stops.length) {
      plot.tabIndex = 0;
      const rows = stops.perColumn || 1;
      plot.addEventListener("keydown", (event) => {
        const moves = { ArrowRight: rows, ArrowLeft: -rows, ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };
        if (event.key in moves) visit(at < 0 ? 0 : at + moves[event.key]), event.preventDefault();
        else if (event.key === "Enter" && at >= 0 && choose) choose(stops[at].head);
      });
    }
    const data = make("details", {}, make("summary", {}, "The same as a table"));
    data.addEventListener("toggle", () => data.open && data.children.length === 1 && data.append(inBox(table(), name)), { once: false });
    const element = make("figure", { className: small ? "small" : "" }, holder, said, caption ? make("figcaption", {}, caption) : null, tools, data);
    element.start = () => {
      document.documentElement.dataset.drawn = "no";
      waiting.set(plot, begin);
      unseen.add(plot);
      near.observe(plot);
    };
    return element;
  };
  const place = (parent, ...figures) => {
    parent.append(...figures);
    figures.forEach((figure) => figure.start());
  };
  const clear = (element) => {
    for (const state of charts) if (element.contains(state.plot)) Plotly.purge(state.plot), charts.delete(state);
    for (const plot of waiting.keys()) if (element.contains(plot)) forget(plot);
    element.replaceChildren();
  };
  addEventListener("beforeprint", () => {
    for (const [plot, begin] of waiting) if (plot.offsetParent) begin(), forget(plot);
    while (queue.length) queue.shift()();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((state) => state.draw()));

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
        ? "Data flows from left to right; within a layer heads stand where lines cross least. Wider lines: larger effects (scores where no path was patched); their diamonds tell more. A mouse drags to zoom."
        : run.level === "node" ? "Each head stands at its own number. No edges: at node level only heads are scored. Run with --level edge to score pairs of heads."
          : "Each head stands at its own number. No edges: no pair of the chosen heads has a score above 0.",
      table: () => run.edges.length
        ? table("Edges, strongest first", ["from", "to", "score", ...run.edge_columns], run.edges)
        : table("Heads", ["head", "score"], run.chosen.map((head) => [head.name, head.values.score])),
    });
  };
  const chosenTable = (run, choose) => {
    const names = run.chosen.length ? Object.keys(run.chosen[0].values) : [];
    const hasCodes = run.chosen.some((head) => head.unique !== null);
    const intervals = Object.keys(run.intervals).length > 0;
    const interval = (name) => (run.intervals[name] ? `${number(run.intervals[name][0])} to ${number(run.intervals[name][1])}` : "–");
    const rows = run.chosen.map((head, i) => [
      String(i + 1),
      choose ? make("button", { type: "button", className: "link", on: { click: () => choose(head.name, true) } }, head.name) : head.name,
      ...names.map((name) => head.values[name]),
      ...(intervals ? [interval(head.name)] : []),
      ...(hasCodes ? [head.unique] : []),
    ]);
    return inBox(table("Chosen heads, best first", ["rank", "head", ...names, ...(intervals ? ["95% interval of the effect"] : []), ...(hasCodes ? ["codes only in positives"] : [])], rows), "Chosen heads");
  };

  const codeBrowser = (run, detail) => {
    const prompts = detail.prompts ? block(detail.prompts) : null;
    const half = detail.n_prompt / 2;
    const judged = detail.judged ? decode(detail.judged) : null;
    const side = (i) => (i < half ? "clean" : "corrupt");
    const text = (i) => (prompts ? prompts[side(i)][i % half] : `${side(i)} prompt ${(i % half) + 1}`);
    const heads = Object.keys(detail.codes);
    const select = make("select", { "data-role": "code-head" }, ...heads.map((head) => make("option", { value: head }, head)));
    const filter = make("input", { type: "search", autocomplete: "off", "data-role": "code-filter", placeholder: "all prompts" });
    const status = make("p", { className: "quiet", role: "status" });
    const box = make("div", { className: "tall codes", tabIndex: 0, role: "region", "aria-label": "Codes" });
    const list = (rows) => rows.length === 0 ? make("p", { className: "quiet" }, "none") :
      make("ul", { className: "prompts" }, ...rows.map((i) => make("li", { className: judged && !judged[i] ? "unseen" : "" },
        foreign(text(i), "prompt"), judged && !judged[i] ? make("span", { className: "quiet" }, "trained on, not counted") : null)));
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
        if (!judged || judged[i]) entry.counts[side(i)]++;
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
    let codes = null, attention = null, codesTitle = null;
    const choose = (head, go) => {
      if (codes) codes.choose(head);
      if (attention) attention.choose(head);
      if (go && (codesTitle || attention)) (codesTitle || attention).scrollIntoView({ block: "start" }), codesTitle && codesTitle.focus({ preventScroll: true });
    };
    const link = detail ? choose : null;

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
          return sign * (typeof x === "number" ? x - y : x.localeCompare(y));
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
    const known = (i) => Number.isInteger(i) && i >= 0 && i < nRuns;
    let view = nRuns === 1 ? "run" : "overview";
    if (nRuns > 1 && name === "run" && known(indices[0])) view = "run";
    if (nRuns > 1 && name === "compare") view = "compare";
    for (const section of views) {
      section.hidden = section.id !== `view-${view}`;
      if (section.hidden && section.id === "view-run") clear(section);
    }
    document.querySelectorAll("nav a").forEach((a) => (a.dataset.view === view ? a.setAttribute("aria-current", "page") : a.removeAttribute("aria-current")));
    if (view === "overview") drawGroups();
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
