(() => {
  const root = document.documentElement, $ = id => document.getElementById(id);
  root.classList.add("js");

  const button = $("theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const name = () => { button.textContent = dark() ? "light" : "dark"; button.setAttribute("aria-label", "Switch to the " + button.textContent + " theme"); };
  button.hidden = false; name();
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);

  // Rows with what hangs below them.
  const blocks = table => {
    const found = [];
    for (const row of table.tBodies[0].rows) row.classList.contains("detail") ? found.at(-1).push(row) : found.push([row]);
    return found;
  };
  const value = (row, index, kind) => {
    const text = row.cells[index].dataset.v;
    if (text === undefined) return null;
    if (kind === "text") return text.toLowerCase();
    const number = parseFloat(text);
    return Number.isNaN(number) ? null : number;
  };
  for (const table of document.querySelectorAll(".sortable")) {
    const place = new Map(blocks(table).map(([row], index) => [row, index])); // equal values stay as they came
    table.tHead.addEventListener("click", event => {
      const sorter = event.target.closest(".sort");
      if (!sorter) return;
      const cell = sorter.closest("th"), index = cell.cellIndex, before = cell.getAttribute("aria-sort");
      const order = before ? (before === "ascending" ? "descending" : "ascending") : sorter.dataset.first;
      table.querySelectorAll("[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
      cell.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const sorted = blocks(table).map(block => [value(block[0], index, sorter.dataset.kind), block]);
      const compare = (a, b) => a === null || b === null ? (a === null) - (b === null)
        : sign * (typeof a === "string" ? a.localeCompare(b, "en") : a - b);
      sorted.sort(([a, [one]], [b, [other]]) => compare(a, b) || place.get(one) - place.get(other));
      table.tBodies[0].append(...sorted.flatMap(([, block]) => block));
    });
  }

  // Numbers become links to the record at the head of their column when they are first shown: it keeps the file small.
  const link = table => {
    const records = [...table.tHead.rows[0].cells].map(cell => cell.querySelector("a")?.getAttribute("href"));
    for (const number of table.querySelectorAll("td > span.v")) {
      const anchor = document.createElement("a");
      anchor.className = "v"; anchor.href = records[number.parentNode.cellIndex]; anchor.textContent = number.textContent;
      number.replaceWith(anchor);
    }
  };
  const details = (row, open) => {
    if (open) link(row.nextElementSibling.querySelector(".numbers"));
    row.nextElementSibling.classList.toggle("open", open);
    row.querySelector(".more").setAttribute("aria-expanded", open);
  };
  for (const more of document.querySelectorAll(".more")) {
    more.hidden = false;
    more.addEventListener("click", () => details(more.closest("tr"), more.getAttribute("aria-expanded") !== "true"));
  }
  const form = $("filters"), fields = ["protocol", "modality", "source", "preset"];
  const arrive = () => {
    const row = location.hash.startsWith("#e-") && $(location.hash.slice(1));
    if (!row) return;
    if (row.hidden || row.closest("section").hidden) { form.reset(); filter(); }
    details(row, true);
    row.scrollIntoView({ block: "center" });
    row.querySelector(".more").focus({ preventScroll: true });
  };
  addEventListener("hashchange", arrive);
  document.addEventListener("click", event => { // the same link twice makes no hashchange
    const link = event.target.closest('a[href^="#e-"]');
    if (link && link.getAttribute("href") === location.hash) { event.preventDefault(); arrive(); }
  });

  const fits = (element, what, chosen) => !chosen[what] || element.dataset[what] === undefined || element.dataset[what] === chosen[what];
  const filter = () => {
    const chosen = Object.fromEntries(fields.map(field => [field, $(field).value]));
    const text = $("text").value.trim().toLowerCase();
    const wanted = row => fields.every(field => fits(row, field, chosen)) && row.dataset.method.toLowerCase().includes(text);
    let shown = 0, all = 0;
    for (const section of document.querySelectorAll(".board, .overview, .reported")) {
      let rows = 0;
      for (const row of section.querySelectorAll("tbody > tr[data-method]")) {
        row.hidden = !wanted(row);
        if (row.nextElementSibling?.classList.contains("detail")) row.nextElementSibling.hidden = row.hidden;
        if (row.closest(".strata")) continue;
        rows += !row.hidden;
        if (section.classList.contains("board")) all++;
      }
      const fitting = fits(section, "protocol", chosen) && fits(section, "modality", chosen);
      section.hidden = !fitting || !rows;
      if (section.classList.contains("board") && fitting) shown += rows;
      if (section.classList.contains("overview")) for (const cell of section.querySelectorAll("[data-modality]")) cell.hidden = !fits(cell, "modality", chosen);
    }
    $("count").textContent = shown === all ? `${all} rows` : `${shown} of ${all} rows`;
    $("nothing").hidden = shown > 0;
  };
  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  filter();
  arrive();
})();
