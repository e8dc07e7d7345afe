"use strict";
// Text reaches the page as textContent only; nothing is ever parsed as markup.
for (const report of document.querySelectorAll(".report")) {
  const source = report.querySelector("script.data");
  if (source) enliven(report, JSON.parse(source.textContent));
}
for (const button of document.querySelectorAll(".copy")) {
  const code = button.parentElement.querySelector("code");
  const label = button.innerHTML;
  button.hidden = false;
  button.addEventListener("click", async () => {
    const done = await copy(code);
    button.textContent = done ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { button.innerHTML = label; }, 2000);
  });
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([hidden])")) details.open = true;
});

async function copy(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(code);
    try { return document.execCommand("copy"); } catch { return false; }
  }
}

function enliven(report, data) {
  const cells = [...report.querySelectorAll("td[data-cell]")];
  const slider = report.querySelector("input[type=range]");
  const detail = report.querySelector(".detail");
  let chosen = null;

  function state(cell, column) {
    const states = data.cells[cell.dataset.cell][3];
    const code = states.length === 1 ? states[0] : states[column];
    return code < 0 ? null : { outcome: code >> 4, built: (code & 15) - 1 };
  }

  function describe() {
    if (!chosen || !detail) return;
    const [module, stored, shape] = data.cells[chosen.dataset.cell];
    const parts = [module + ": " + (stored < 0 ? "not stored" : "stored " + data.formats[stored] + (shape ? " " + shape : ""))];
    if (slider) {
      const step = data.steps[slider.value];
      const now = state(chosen, step.column);
      const engine = step.engine + " " + step.version;
      if (!now) parts.push(engine + " does not look at it");
      else if (now.built < 0) parts.push(engine + " has no place for it, " + data.outcomes[now.outcome]);
      else parts.push(engine + " builds " + data.formats[now.built] + ", " + data.outcomes[now.outcome]);
    }
    detail.textContent = parts.join("; ") + ".";
  }

  function choose(cell) {
    if (chosen) { chosen.classList.remove("chosen"); chosen.tabIndex = -1; }
    chosen = cell;
    cell.classList.add("chosen");
    cell.tabIndex = 0;
    describe();
  }

  function show() {
    const step = data.steps[slider.value];
    const column = data.columns[step.column];
    const verdict = { loads: "loads", fails: "FAILS", silent: "SILENT", absent: "none", unknown: "unknown" };
    let text = step.engine + " " + step.version + " (" + (step.run ? "run" : "read") + "): main model " +
      verdict[column.target] + ", MTP draft " + verdict[column.draft];
    if (column.error) text += ". " + column.error + (column.tensor ? " at " + column.tensor : "");
    else if (column.reason) text += ". " + column.reason;
    report.querySelector(".slider output").textContent = text;
    slider.setAttribute("aria-valuetext", text);
    for (const button of report.querySelectorAll("button[data-step]")) {
      if (button.dataset.step === slider.value) {
        button.setAttribute("aria-current", "true");
        const strip = button.closest(".scroll");
        strip.scrollLeft += button.getBoundingClientRect().left - strip.getBoundingClientRect().left - strip.clientWidth / 2;
      } else button.removeAttribute("aria-current");
    }
    for (const cell of cells) {
      const now = state(cell, step.column);
      const outcome = now ? now.outcome : data.classes.indexOf("ok");
      cell.classList.remove("crash", "silent");
      if (data.classes[outcome] !== "ok") cell.classList.add(data.classes[outcome]);
      cell.querySelector("b").textContent = data.marks[outcome];
      const stored = data.cells[cell.dataset.cell][1];
      cell.querySelector(".hidden").textContent =
        (stored < 0 ? "not stored" : data.formats[stored]) + ", " + data.outcomes[outcome];
    }
    describe();
    filter();
  }

  const form = report.querySelector(".filter");
  function filter() {
    if (!form) return;
    const severities = [...form.querySelectorAll("[name=severity]:checked")].map((box) => box.value);
    const text = form.elements.text.value.toLowerCase();
    const step = slider && data.steps[slider.value];
    const findings = [...report.querySelectorAll(".finding")];
    let shown = 0;
    for (const finding of findings) {
      const releases = data.findings[finding.dataset.finding];
      const here = !form.elements.release.checked || !step || !releases.length ||
        releases.includes(step.engine + " " + step.version);
      const kept = here && severities.some((one) => finding.classList.contains(one)) &&
        finding.textContent.toLowerCase().includes(text);
      finding.hidden = !kept;
      shown += kept;
    }
    form.querySelector("output").textContent = shown + " of " + findings.length + " shown";
  }

  if (form) {
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    filter();
  }
  if (slider) {
    slider.addEventListener("input", show);
    for (const button of report.querySelectorAll("button[data-step]")) {
      button.addEventListener("click", () => { slider.value = button.dataset.step; show(); });
    }
    show();
  }
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  for (const map of report.querySelectorAll(".map")) {
    const first = map.querySelector("td[data-cell]");
    if (first) first.tabIndex = 0;
    map.addEventListener("click", (event) => {
      const cell = event.target.closest("td[data-cell]");
      if (cell) { choose(cell); cell.focus(); }
    });
    map.addEventListener("focusin", (event) => {
      const cell = event.target.closest("td[data-cell]");
      if (cell && cell !== chosen) choose(cell);
    });
    map.addEventListener("keydown", (event) => {
      const move = moves[event.key];
      const start = event.target.closest("td[data-cell]");
      if (!move || !start) return;
      event.preventDefault();
      const rows = [...map.querySelectorAll("tbody tr")];
      let row = rows.indexOf(start.parentElement), column = start.cellIndex;
      for (;;) {
        row += move[0];
        column += move[1];
        const line = rows[row];
        if (!line || column < 1 || column >= line.cells.length) return;
        const next = line.cells[column];
        if (next.dataset.cell !== undefined) { next.focus(); return; }
      }
    });
  }
}
