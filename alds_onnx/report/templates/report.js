"use strict";
// Names come from the model: they are only ever set as text (textContent, SVG text), never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const BANDS = 5;
  const WHOLE = { decompose: -1, keep: -1, skip: -2 };
  const views = new Map();
  const $ = (id) => document.getElementById(id);
  const layerOf = (number) => data.layers[number - 1];

  // Format numbers as the tables do.
  const error = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))));
  const count = (value) => (value === null ? "–" : value.toLocaleString("en-US"));
  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  const share = (row) => (row.before ? row.after / row.before : 1);

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function factsOf(row) {
    const facts = [
      ["node", `${row.op} ${row.shape}`],
      ["decision", row.reason ? `${row.decision}: ${row.reason}` : row.decision],
    ];
    if (row.slices !== null) {
      facts.push(["scheme", row.scheme], ["slices k", String(row.slices)], ["rank j", String(row.rank)]);
      facts.push(["error of the weight", error(row.relative)]);
      if (data.onData) {
        facts.push(["error of its output", error(row.local)]);
        facts.push(["error of the outputs", error(row.output)]);
      }
    }
    const kept = row.slices === null ? "" : ` → ${count(row.after)} (${percent(share(row))} kept)`;
    facts.push(["parameters", count(row.before) + kept]);
    if (row.macsBefore !== null) {
      const macs = row.slices === null ? "" : ` → ${count(row.macsAfter)}`;
      facts.push(["multiply-accumulates", count(row.macsBefore) + macs]);
    }
    return facts;
  }

  // The box beside the pointer: for a number the facts of that layer, otherwise the text itself.
  const tip = $("tip");

  function showTip(event, value) {
    if (value === null || value === undefined || value === "") {
      tip.hidden = true;
      return;
    }
    tip.replaceChildren();
    if (typeof value === "number") {
      const row = layerOf(value);
      tip.append(element("b", `${row.number} · ${row.name}`));
      const list = element("dl");
      for (const [key, text] of factsOf(row)) list.append(element("dt", key), element("dd", text));
      tip.append(list);
    } else {
      tip.append(element("span", String(value)));
    }
    tip.hidden = false;
    const gap = 14;
    const right = event.clientX + gap + tip.offsetWidth > window.innerWidth;
    const below = event.clientY + gap + tip.offsetHeight > window.innerHeight;
    const x = right ? event.clientX - gap - tip.offsetWidth : event.clientX + gap;
    const y = below ? event.clientY - gap - tip.offsetHeight : event.clientY + gap;
    tip.style.left = `${Math.max(4, x)}px`;
    tip.style.top = `${Math.max(4, y)}px`;
  }

  // Vega's own loader and code generator stay unused: the page's policy allows neither.
  const options = {
    mode: "vega",
    renderer: "svg",
    ast: true,
    actions: false,
    defaultStyle: false,
    hover: true,
    // Log errors only: Vega warns about empty tables, and the table of the cut may be empty.
    logLevel: 1,
    tooltip: (handler, event, item, value) => showTip(event, value),
  };

  async function embed(place, name, tables) {
    const spec = plots[name];
    const filled = spec.data.map((table) =>
      table.name in tables ? { ...table, values: tables[table.name] } : table,
    );
    const { view } = await window.vegaEmbed(place, { ...spec, data: filled }, options);
    view.addEventListener("click", (event, item) => {
      const number = item && item.datum ? item.datum.number : undefined;
      if (number !== undefined) choose(Number(number));
    });
    return view;
  }

  // Draw a plot with these tables, or update the existing plot.
  async function draw(name, tables) {
    const place = document.querySelector(`[data-plot="${name}"]`);
    if (!place) return;
    if (!views.has(name)) {
      views.set(name, embed(place, name, tables));
      await views.get(name);
    } else {
      const view = await views.get(name);
      for (const [table, rows] of Object.entries(tables)) view.data(table, rows);
      await view.runAsync();
    }
    const svg = place.querySelector("svg");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", place.dataset.label);
    place.dataset.drawn = "yes";
  }

  // Divide errors into five bands of equal width, in logarithms if the errors differ much.
  function bandsOf(values) {
    const positive = values.filter((value) => value !== null && value > 0);
    if (!positive.length) return null;
    const low = Math.min(...positive);
    const high = Math.max(...positive);
    const log = high > 20 * low;
    const [from, to] = log ? [Math.log(low), Math.log(high)] : [low, high];
    const edges = Array.from({ length: BANDS + 1 }, (_, i) => {
      const at = from + ((to - from) * i) / BANDS;
      return log ? Math.exp(at) : at;
    });
    const band = (value) => {
      const at = edges.slice(1, -1).filter((edge) => value > edge).length;
      return value === null ? -1 : at;
    };
    return { edges, band };
  }

  function legend(bands) {
    const list = $("bands");
    const entry = (className, text) => {
      const item = element("li");
      item.append(element("i", undefined, className), text);
      return item;
    };
    const round = (value) => String(Number(value.toPrecision(3)));
    list.replaceChildren();
    if (bands) {
      for (let i = 0; i < BANDS; i++) {
        list.append(entry(`e${i}`, `${round(bands.edges[i])} – ${round(bands.edges[i + 1])}`));
      }
    }
    const there = (decision) => data.layers.some((row) => row.decision === decision);
    if (there("decompose")) list.append(entry("before", "before"));
    if (there("keep")) list.append(entry("kept", "kept whole"));
    if (there("skip")) list.append(entry("skip", "skipped"));
  }

  let chosen = null;

  function layerTables() {
    const measure = $("measure").value;
    const bands = bandsOf(data.layers.map((row) => row[measure]));
    legend(bands);
    const layers = data.layers.map((row) => ({
      number: row.number,
      before: row.before,
      after: row.after,
      whole: row.before ? 1 : 0,
      share: row.before ? share(row) : 0,
      decision: row.decision,
      error: row[measure],
      band: row.decision === "decompose" && bands ? bands.band(row[measure]) : WHOLE[row.decision],
    }));
    return { layers, chosen: chosen === null ? [] : [{ number: chosen }] };
  }

  // Bars of parameters and of shares have different axes, so one plot replaces the other.
  async function drawLayers() {
    const which = $("bars").value;
    const place = document.querySelector('[data-plot="parameters"], [data-plot="shares"]');
    const shown = place.dataset.plot;
    if (shown !== which) {
      place.dataset.plot = which;
      (await views.get(shown)).finalize();
      views.delete(shown);
      place.replaceChildren();
    }
    const tables = layerTables();
    await Promise.all([draw(which, tables), draw("errors", tables)]);
  }

  function curveRows(row, weight) {
    const rows = [];
    for (const curve of weight.curves) {
      const isChosen = row.slices === null ? curve.slices === 1 : curve.slices === row.slices;
      curve.ranks.forEach((rank, i) => {
        const cost = row.before ? (rank * curve.perRank) / row.before : 0;
        rows.push({
          series: isChosen ? "chosen" : "other",
          slices: curve.slices,
          rank,
          cost,
          error: curve.errors[i],
          text: `k = ${curve.slices}, j = ${rank}: error ${error(curve.errors[i])}, ${percent(cost)} of the parameters`,
        });
      });
    }
    return rows;
  }

  function nearest(rows, rank) {
    return rows.reduce((best, row) => (Math.abs(row.rank - rank) < Math.abs(best.rank - rank) ? row : best));
  }

  function cutOf(row, rows) {
    const own = rows.filter((point) => point.slices === row.slices);
    if (row.rank === null || !own.length) return [];
    return [{ ...nearest(own, row.rank), rank: row.rank, label: `j = ${row.rank}` }];
  }

  function lineLegend(weight, row) {
    const list = $("lines");
    list.replaceChildren();
    for (const curve of weight.curves) {
      const isChosen = row.slices === null || curve.slices === row.slices;
      const item = element("li");
      const line = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      line.setAttribute("viewBox", "0 0 28 4");
      line.setAttribute("class", `line ${isChosen ? "chosen" : "other"}`);
      line.setAttribute("aria-hidden", "true");
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", "M0 2h28");
      line.append(path);
      const slices = curve.slices === 1 ? "1 slice" : `${curve.slices} slices`;
      const what = row.slices === null ? "" : isChosen ? ", chosen" : ", for comparison";
      item.append(line, `${slices}${what}`);
      list.append(item);
    }
  }

  function pointTable(rows) {
    const [head, body] = [document.querySelector("#points thead"), document.querySelector("#points tbody")];
    const line = (cells, kind) => {
      const made = element("tr");
      for (const text of cells) made.append(element(kind, text));
      return made;
    };
    head.replaceChildren(line(["slices k", "rank j", "error left", "of the parameters"], "th"));
    body.replaceChildren(
      ...rows.map((row) => line([row.slices, row.rank, error(row.error), percent(row.cost)], "td")),
    );
  }

  function drawLayer(number) {
    const row = layerOf(number);
    const weight = data.weights[row.weight];
    const facts = factsOf(row).map(([key, text]) => {
      const pair = element("div");
      pair.append(element("dt", key), element("dd", text));
      return pair;
    });
    $("facts").replaceChildren(...facts);
    lineLegend(weight, row);
    const rows = curveRows(row, weight);
    const cut = cutOf(row, rows);
    pointTable(rows);
    const damage = weight.probes.map(([local, output]) => ({
      local,
      output,
      text: `layer ${error(local)} → outputs ${error(output)}`,
    }));
    const reached =
      row.local > 0 && row.output > 0
        ? [{ local: row.local, output: row.output, label: "this cut", text: `layer ${error(row.local)} → outputs ${error(row.output)}` }]
        : [];
    return Promise.all([
      draw("spectrum", { curves: rows, cut }),
      draw("cost", { curves: rows.filter((point) => point.cost <= 1), cut }),
      draw("damage", { damage, reached }),
    ]);
  }

  function choose(number) {
    if (layerOf(number).weight === null) return;
    chosen = number;
    $("chooser").value = String(number);
    drawLayer(number);
    drawLayers();
  }

  // Begin with the layer that has the largest error.
  function worst() {
    const measure = $("measure").value;
    const inside = data.layers.filter((row) => row.weight !== null);
    if (!inside.length) return null;
    return inside.reduce((best, row) => ((row[measure] ?? -1) > (best[measure] ?? -1) ? row : best)).number;
  }

  function drawTrade() {
    // The axis is logarithmic for errors of outputs, so it cannot show 0.
    const all = data.trade.flatMap((line, n) =>
      line.removed.map((removed, i) => ({
        series: n === 0 ? "chosen" : "other",
        removed,
        error: line.error[i],
        text: `${percent(removed)} removed: error ${error(line.error[i])}, predicted`,
      })),
    );
    const rows = all.filter((row) => !data.onData || row.error > 0);
    const point = data.point
      ? [{ ...data.point, label: "this model", text: `${percent(data.point.removed)} removed: error ${error(data.point.error)}, this model` }]
      : [];
    return draw("trade", { trade: rows, point });
  }

  function drawTrials() {
    const trials = data.trials
      .filter((trial) => trial.value !== null)
      .map((trial) => ({
        ...trial,
        series: trial.held ? "held" : "not held",
        text: `${percent(trial.removed)} to remove: ${error(trial.value)}`,
      }));
    const limit = data.limit === null ? [] : [{ value: data.limit, text: `limit ${error(data.limit)}` }];
    return draw("trials", { trials, limit });
  }

  function drawSweep() {
    const sweep = data.sweep.filter((point) => point.loss !== null);
    const shown = sweep
      .filter((point) => point.shown)
      .map((point) => ({ ...point, label: `--cr ${point.cr}` }));
    return draw("sweep", { sweep, shown });
  }

  // The expected point is joined with the last measured one, which is in both lines but one point.
  function drawLearning() {
    const points = data.learning.filter((point) => point.error !== null);
    if (points.length < 3) return draw("learning", { learning: [] });
    const row = (point, i, series, own) => ({
      ...point,
      series,
      point: own,
      text: `${count(point.samples)} samples: output error ${error(point.error)}, ${i < 2 ? "measured" : "expected"}`,
    });
    const [half, all, twice] = points;
    return draw("learning", {
      learning: [
        row(half, 0, "chosen", true),
        row(all, 1, "chosen", true),
        row(all, 1, "other", false),
        row(twice, 2, "other", true),
      ],
    });
  }

  function drawLatency() {
    const series = (model) => (model === "original" ? "before" : "after");
    const times = data.times.map(([model, ms]) => ({ model, ms, series: series(model) }));
    const boxes = data.boxes.map((box) => ({
      ...box,
      series: series(box.model),
      text: `${box.model}: median ${error(box.median)} ms, middle half ${error(box.low)} to ${error(box.high)} ms`,
    }));
    return draw("latency", { times, boxes });
  }

  function sortRows(button) {
    const head = button.closest("th");
    const column = [...head.parentElement.children].indexOf(head);
    const upwards = head.getAttribute("aria-sort") !== "ascending";
    const numeric = button.dataset.sort === "number";
    const key = (line) => {
      const cell = line.children[column];
      if (!numeric) return cell.textContent;
      return cell.dataset.value === "" ? -Infinity : Number(cell.dataset.value);
    };
    const order = (a, b) => (numeric ? key(a) - key(b) || 0 : key(a).localeCompare(key(b)));
    const body = document.querySelector("#rows tbody");
    const lines = [...body.children].sort((a, b) => (upwards ? order(a, b) : order(b, a)));
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", upwards ? "ascending" : "descending");
    body.replaceChildren(...lines);
  }

  function filterRows() {
    const wanted = $("filter").value.toLowerCase();
    const lines = [...document.querySelectorAll("#rows tbody tr")];
    for (const line of lines) line.hidden = !line.children[1].textContent.toLowerCase().includes(wanted);
    const left = lines.filter((line) => !line.hidden).length;
    $("shown").textContent = wanted ? `${left} of ${lines.length} layers` : "";
  }

  function listen() {
    $("bars").addEventListener("change", drawLayers);
    $("measure").addEventListener("change", drawLayers);
    $("filter").addEventListener("input", filterRows);
    if ($("chooser")) $("chooser").addEventListener("change", (event) => choose(Number(event.target.value)));
    for (const form of document.querySelectorAll("form")) {
      form.addEventListener("submit", (event) => event.preventDefault());
    }
    for (const button of document.querySelectorAll("[data-sort]")) {
      button.addEventListener("click", () => sortRows(button));
    }
    for (const button of document.querySelectorAll("[data-layer]")) {
      button.addEventListener("click", () => {
        choose(Number(button.dataset.layer));
        $("chooser").focus({ preventScroll: true });
        $("layer").scrollIntoView();
      });
    }
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") tip.hidden = true;
    });
    document.addEventListener("scroll", () => (tip.hidden = true), { passive: true });
  }

  listen();
  chosen = worst();
  const drawn = [drawLayers(), drawTrade(), drawTrials(), drawSweep(), drawLearning(), drawLatency()];
  if (chosen !== null) {
    $("chooser").value = String(chosen);
    drawn.push(drawLayer(chosen));
  }
  Promise.all(drawn).then(() => (document.documentElement.dataset.drawn = "yes"));
})();
