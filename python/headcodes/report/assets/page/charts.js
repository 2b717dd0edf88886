// Goes on in the function that base.js opens and views.js ends.
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
    const status = make("p", { className: "quiet", role: "status" });
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
      status.textContent = stop.text;
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
    const element = make("figure", { className: small ? "small" : "" }, holder, status, caption ? make("figcaption", {}, caption) : null, tools, data);
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

