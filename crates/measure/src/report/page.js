// What the controls do: runs on and off, metrics, smoothing, the step that is read out, the gallery's filters, the colours.
(() => {
  const root = document.documentElement;
  root.classList.add("live");
  const data = JSON.parse(document.getElementById("data").textContent);
  const metrics = new Map(data.metrics.map(metric => [metric.name, metric.lines]));
  const panels = [...document.querySelectorAll(".panel")].map(figure => ({ figure, metric: figure.dataset.metric, host: figure.querySelector(".plot"), readout: figure.querySelector(".readout") }));
  const hidden = new Set();
  // What is read out, and whether a pointer or a key asked: a page that scrolls under a resting pointer must not take a key's reading away.
  let weight = 0, at = null, by = null;

  // Opened from a file or an e-mail, storage may be forbidden; then the choice lasts as long as the page.
  const theme = document.getElementById("theme");
  const remember = value => { try { localStorage.setItem("mdpo-report-theme", value); } catch { /* forbidden */ } };
  const remembered = () => { try { return localStorage.getItem("mdpo-report-theme"); } catch { return null; } };
  const colour = value => { if (value === "auto") delete root.dataset.theme; else root.dataset.theme = value; };
  if (["light", "dark"].includes(remembered())) { theme.value = remembered(); colour(theme.value); }
  theme.addEventListener("change", () => { colour(theme.value); remember(theme.value); });

  const shownLines = metric => (metrics.get(metric) ?? []).filter(line => !hidden.has(line.run))
    .map(line => ({ ...line, style: line.run, name: data.names[line.run] }));
  // All panels share the steps of the runs that are shown, so that a place means the same in each.
  const extent = () => {
    const lines = [...metrics.keys()].flatMap(shownLines);
    return [Math.min(...lines.map(line => line.steps[0])), Math.max(...lines.map(line => line.steps.at(-1)))];
  };

  const render = (only) => {
    const range = extent();
    for (const panel of panels) {
      if (panel.figure.hidden || only && !only.has(panel.host)) continue;
      const focused = panel.drawn?.svg === document.activeElement;
      panel.drawn = draw(panel.host, panel.metric, shownLines(panel.metric), weight, range);
      if (focused) panel.drawn.svg.focus({ preventScroll: true });
      panel.drawn.svg.addEventListener("pointermove", event => {
        if (by === "key" && !event.movementX && !event.movementY) return;
        by = "pointer";
        read(panel, panel.drawn.stepAt?.(event.clientX - panel.host.getBoundingClientRect().left));
      });
      panel.drawn.svg.addEventListener("pointerleave", () => { if (by === "pointer") read(panel, null); });
      panel.drawn.svg.addEventListener("keydown", event => move(panel, event));
      panel.drawn.svg.addEventListener("blur", () => read(panel, null));
    }
    for (const section of document.querySelectorAll(".group")) section.hidden = !section.querySelector(".panel:not([hidden])");
    read(null, at);
  };

  // Marks a step in every panel; only the panel that was asked speaks to a screen reader.
  const read = (asked, step) => {
    at = step ?? null;
    for (const panel of panels) {
      const drawn = panel.drawn;
      if (panel.figure.hidden || !drawn?.cross) continue;
      panel.readout.setAttribute("aria-live", panel === asked ? "polite" : "off");
      if (at === null) { drawn.cross.setAttribute("visibility", "hidden"); panel.readout.replaceChildren(); continue; }
      const places = drawn.lines.map(line => nearest(line.steps, at));
      const shown = drawn.lines[0].steps[places[0]];
      drawn.cross.setAttribute("visibility", "visible");
      drawn.cross.setAttribute("x1", drawn.x(shown));
      drawn.cross.setAttribute("x2", drawn.x(shown));
      const head = document.createElement("span");
      head.textContent = `step ${shown.toLocaleString("en")}`;
      panel.readout.replaceChildren(head, ...drawn.lines.map((line, i) => {
        const part = document.createElement("span"), value = document.createElement("b");
        const key = make("svg", { class: `key s${line.style % 6}`, width: 10, height: 10, viewBox: "-5 -5 10 10", "aria-hidden": "true" });
        key.append(make("use", { href: `#m${line.style % 5}` }));
        value.textContent = number(line.shown[places[i]]);
        part.append(key, ` ${line.name} `, value);
        if (line.low.length) part.append(` (${number(line.low[places[i]], 3)} to ${number(line.high[places[i]], 3)})`);
        return part;
      }));
    }
  };

  const move = (panel, event) => {
    const steps = panel.drawn.lines[0]?.steps;
    if (!steps) return;
    const place = at === null ? -1 : nearest(steps, at), last = steps.length - 1;
    const next = { ArrowRight: Math.min(place + 1, last), ArrowLeft: at === null ? last : Math.max(place - 1, 0), Home: 0, End: last, Escape: null }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    by = "key";
    read(panel, next === null ? null : steps[next]);
  };

  document.getElementById("names").addEventListener("change", event => {
    const name = Number(event.target.dataset.name);
    if (event.target.checked) hidden.delete(name); else hidden.add(name);
    for (const element of document.querySelectorAll(`[data-owner="${name}"]`)) element.hidden = hidden.has(name);
    render();
    filter();
  });
  document.getElementById("choose")?.addEventListener("change", event => {
    const panel = panels.find(panel => panel.metric === event.target.dataset.metric);
    if (panel) panel.figure.hidden = !event.target.checked;
    // A heading must be there before what is below it can be measured.
    for (const section of document.querySelectorAll(".group")) section.hidden = !section.querySelector(".panel:not([hidden])");
    render();
  });
  document.getElementById("smooth")?.addEventListener("input", event => {
    weight = Number(event.target.value);
    document.getElementById("smooth-value").textContent = String(weight);
    render();
  });

  const only = document.getElementById("only-invented"), which = document.getElementById("which"), count = document.getElementById("count");
  const cards = [...document.querySelectorAll(".card")];
  const filter = () => {
    if (!only) return;
    for (const card of cards) {
      const invented = card.querySelector("[data-invented]:not([hidden])") !== null;
      card.hidden = only.checked && !invented || Boolean(which?.value) && card.dataset.benchmark !== which.value;
    }
    count.textContent = `${cards.filter(card => !card.hidden).length} of ${cards.length} questions shown`;
  };
  only?.addEventListener("change", filter);
  which?.addEventListener("change", filter);

  render();
  filter();
  // Widths change with the window, fonts and opened details.
  const widths = new Map(panels.map(panel => [panel.host, panel.host.clientWidth]));
  const observer = new ResizeObserver(entries => {
    const changed = new Set(entries.map(entry => entry.target).filter(host => host.clientWidth && host.clientWidth !== widths.get(host)));
    for (const host of changed) widths.set(host, host.clientWidth);
    if (changed.size) render(changed);
  });
  for (const panel of panels) observer.observe(panel.host);
})();
