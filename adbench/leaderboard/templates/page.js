(() => {
  const root = document.documentElement, $ = id => document.getElementById(id);
  root.classList.add("js");

  const button = $("theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const name = () => { button.textContent = dark() ? "light" : "dark"; button.setAttribute("aria-label", "Switch to the " + button.textContent + " theme"); };
  button.hidden = false; name();
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);

  const make = (name, text, attributes) => {
    const element = document.createElement(name);
    for (const at in attributes) element[at] = attributes[at];
    Array.isArray(text) ? element.append(...text) : element.append(text);
    return element;
  };

  // The file holds what a reader without scripts needs, and the rest as numbers and texts: links, bars, plots and the tables
  // by modality and stratum are made of them here. Texts are untrusted: they become text, never markup.
  const known = JSON.parse($("data").textContent), told = index => known.texts[index];
  const own = new Map([...document.querySelectorAll(".entry")].map((row, place) => [row, known.entries[place]]));
  const entries = [...own.keys()];
  const label = row => row.cells[1].dataset.v;
  const share = (number, top) => Math.min(1, Math.max(0, number / top));
  const number = (text, href, at = "—", ends = "", className = "r") => {
    const cell = make("td", at === "—" ? make("span", "—", { className: "none" }) : make("a", at, { className: "v", href }), { className });
    if (text !== undefined) cell.dataset.v = text;
    if (ends) cell.append(make("span", ends, { className: "ci" }));
    return cell;
  };
  const beside = (row, name, cells) => { // a row about the same method as an entry
    const made = make("tr", [make("th", name, { scope: "row" }), ...cells]);
    Object.assign(made.dataset, row.dataset);
    made.cells[0].dataset.v = made.cells[0].firstChild.textContent;
    return made;
  };
  const complete = (row, { row: about, values }, headings, top) => {
    const [, named] = row.cells, links = row.querySelectorAll(".records a"), id = row.id + "-d", name = named.firstChild;
    [row.dataset.source, row.dataset.preset, row.dataset.method] = about.map(told);
    named.dataset.v = name.textContent;
    const href = links.length === 1 ? links[0].getAttribute("href") : "#" + row.id;
    [...row.cells].filter(cell => cell !== named).forEach((cell, place) => {
      if (values[place] !== null) cell.dataset.v = values[place];
      cell.className = place ? headings[place + 1].className : "r rank";
      cell.querySelector("small")?.replaceWith(make("span", cell.lastChild.textContent, { className: "ci" }));
      if (place && values[place] === null) cell.classList.add("none");
      else if (place && place < values.length - 2) cell.firstChild.replaceWith(make("a", cell.firstChild.textContent, { className: "v", href }));
    });
    row.cells[2].classList.add("head-line");
    const axis = row.insertCell(3), ends = row.cells[2].querySelector(".ci")?.textContent.split("–");
    axis.className = "axis";
    if (ends) {
      const bar = make("span", [], { className: "forest", ariaHidden: "true" });
      [["--low", ends[0]], ["--at", values[1]], ["--high", ends[1]]].forEach(([at, end]) => bar.style.setProperty(at, share(end, top)));
      axis.append(bar);
    }
    const more = make("button", [make("span", "Details of ", { className: "hidden" }), name.cloneNode(true)], { type: "button", className: "more", ariaExpanded: "false" });
    more.setAttribute("aria-controls", id);
    name.replaceWith(more);
    const boxes = ["numbers", "about"].map(className => make("div", [], { className }));
    row.after(make("tr", make("td", make("div", boxes, { className: "inside" }), { colSpan: row.cells.length }), { className: "detail", id }));
  };
  const drawn = (name, attributes, ...inside) => {
    const element = document.createElementNS(document.querySelector("svg").namespaceURI, name);
    for (const [at, text] of Object.entries(attributes)) element.setAttribute(at, text);
    element.append(...inside);
    return element;
  };
  const marks = new Map();
  const mark = (row, { low, high }, top, written) => {
    const seconds = row.cells[row.cells.length - 1], quality = row.cells[2];
    if (seconds.dataset.v === undefined || quality.dataset.v === undefined) return [];
    const x = share(Math.log10(Math.max(seconds.dataset.v, 1e-4)) - low, high - low), right = (50 + 560 * x).toFixed(1), up = 240 * share(quality.dataset.v, top);
    const made = drawn("a", { href: "#" + row.id, "aria-label": label(row) },
      drawn("title", {}, `${label(row)}: ${quality.firstChild.textContent}, ${seconds.textContent} s`),
      drawn("circle", { cx: right, cy: (260 - up).toFixed(1), r: 5 }));
    if (written) made.append(drawn("text", { x: right, y: (252 - up).toFixed(1), "text-anchor": x > 0.7 ? "end" : "start" }, label(row)));
    marks.set(row, made);
    return made;
  };
  // What is folded away is made when the page has nothing else to do, or when it is opened or filtered.
  const later = [];
  const finish = () => { while (later.length) later.shift()(); };
  const idle = window.requestIdleCallback ?? setTimeout;
  const oneByOne = () => { later.shift()?.(); if (later.length) idle(oneByOne); };
  addEventListener("load", () => idle(oneByOne));
  document.addEventListener("toggle", finish, true);
  for (const table of document.querySelectorAll(".results")) {
    const board = table.closest(".board"), top = +table.dataset.top, rows = [...table.tBodies[0].rows];
    const headings = [...table.tHead.rows[0].cells].filter(heading => !heading.classList.contains("axis"));
    table.style.setProperty("--chance", share(table.dataset.chance, top));
    table.querySelector(".axis").hidden = false;
    for (const row of rows) complete(row, own.get(row), headings, top);
    for (const plot of board.querySelectorAll(".cost")) {
      plot.hidden = false;
      later.push(() => plot.lastElementChild.append(...rows.flatMap(row => mark(row, plot.lastElementChild.dataset, top, rows.length <= 16))));
    }
    for (const strata of board.querySelectorAll(".strata")) {
      const cells = known.strata.shift();
      strata.hidden = false;
      later.push(() => strata.querySelector("tbody").append(...rows.map((row, place) => beside(row, label(row), cells[place].split("|").map(text => {
        const [at, ends] = text.split(" ");
        return at === "—" ? number() : number(at.replace("≈", ""), "#" + row.id, at, ends);
      })))));
    }
  }
  document.querySelectorAll(".overview table").forEach((table, place) => {
    const modalities = [...table.tHead.rows[0].cells].slice(1).map(heading => heading.dataset.modality);
    table.tBodies[0].append(...known.overviews[place].map(([name, ...places]) => {
      const row = entries[places.find(found => found !== null)];
      return beside(row, [told(name) + " ", make("small", row.dataset.source)], places.map((found, column) => {
        const one = entries[found], shown = one?.cells[2];
        const cell = shown?.dataset.v ? number(shown.dataset.v, "#" + one.id, shown.firstChild.textContent, shown.querySelector(".ci")?.textContent) : number();
        cell.classList.toggle("best", one?.cells[0].dataset.v === "1");
        cell.dataset.modality = modalities[column];
        return cell;
      }));
    }));
  });
  for (const row of document.querySelector(".published")?.tBodies[0].rows ?? []) {
    row.dataset.method = row.cells[0].textContent;
    row.cells[5].dataset.v = row.cells[5].textContent;
  }

  // Rows with what hangs below them.
  const blocks = table => {
    const found = [];
    for (const row of table.tBodies[0].rows) row.classList.contains("detail") ? found.at(-1).push(row) : found.push([row]);
    return found;
  };
  const value = (row, index, kind) => {
    const text = row.cells[index].dataset.v ?? (kind === "text" ? row.cells[index].textContent : undefined);
    if (text === undefined) return null;
    if (kind === "text") return text.toLowerCase();
    const number = parseFloat(text);
    return Number.isNaN(number) ? null : number;
  };
  const sorters = new Map();
  for (const table of document.querySelectorAll(".sortable")) {
    const place = new Map(); // equal values stay as they came
    sorters.set(table, (sorter, order) => {
      if (!place.size) blocks(table).forEach(([row], index) => place.set(row, index));
      const cell = sorter.closest("th"), index = cell.cellIndex;
      table.querySelectorAll("[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
      cell.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const sorted = blocks(table).map(block => [value(block[0], index, sorter.dataset.kind), block]);
      const compare = (a, b) => a === null || b === null ? (a === null) - (b === null)
        : sign * (typeof a === "string" ? a.localeCompare(b, "en") : a - b);
      sorted.sort(([a, [one]], [b, [other]]) => compare(a, b) || place.get(one) - place.get(other));
      table.tBodies[0].append(...sorted.flatMap(([, block]) => block));
    });
    table.tHead.addEventListener("click", event => {
      const sorter = event.target.closest(".sort");
      if (!sorter) return;
      const before = sorter.closest("th").getAttribute("aria-sort");
      const order = before ? (before === "ascending" ? "descending" : "ascending") : sorter.dataset.first;
      sorters.get(table)(sorter, order);
      if (table.id) address({ sort: [...asked("sort").filter(one => one.split("~")[0] !== table.id), [table.id, sorter.textContent, order].join("~")] });
    });
  }

  // What is filtered, sorted and opened stands in the address, so that a link leads to what its sender saw.
  const asked = name => new URLSearchParams(location.search).getAll(name);
  const address = changes => {
    const next = new URLSearchParams(location.search);
    for (const [name, texts] of Object.entries(changes)) {
      next.delete(name);
      for (const text of [texts].flat()) if (text) next.append(name, text);
    }
    const search = String(next);
    history.replaceState(null, "", location.pathname + (search && "?" + search) + location.hash);
  };
  const sortAsAsked = () => {
    for (const [id, heading, order] of asked("sort").map(text => text.split("~"))) {
      const table = id && $(id), sort = sorters.get(table);
      const sorter = sort && [...table.tHead.querySelectorAll(".sort")].find(one => one.textContent === heading);
      if (sorter && ["ascending", "descending"].includes(order)) sort(sorter, order);
    }
  };

  // What a row opens to is made when it is first opened.
  const head = (cells, right) => make("thead", make("tr", cells.map((cell, index) => make("th", cell, { scope: "col", className: index && right ? "r" : "" }))));
  const pairs = flat => Array.from({ length: flat.length / 2 }, (_, place) => flat.slice(2 * place, 2 * place + 2).map(told));
  const fill = row => {
    const [numbers, about] = row.nextElementSibling.querySelectorAll(".numbers, .about");
    if (about.childElementCount) return;
    const { metrics, seeds, why, facts, params, differs } = own.get(row), links = [...row.querySelectorAll(".records a")];
    const read = seeds.map(text => text.split("|"));
    const rows = known.metrics[metrics].map(([name, oracle], place) => make("tr", [
      make("th", oracle ? [told(name) + " ", make("span", "oracle", { className: "tag" })] : told(name), { scope: "row" }),
      ...read.map((texts, seed) => {
        const [at, ends] = texts[place].split(" ");
        const cell = number(undefined, links[seed].getAttribute("href"), at, ends, "");
        if (place in why) cell.title = told(why[place]);
        return cell;
      }),
    ], { className: oracle ? "oracle" : "" }));
    numbers.append(make("table", [make("caption", "Every number, by seed", { className: "hidden" }), head(["metric", ...links.map(link => link.cloneNode(true))], true), make("tbody", rows)], { className: "plain" }));
    about.append(make("dl", pairs(facts).map(([name, text]) => make("div", [make("dt", name), make("dd", text)])), { className: "facts" }));
    const values = pairs(params).map(([name, text], place) => make("tr", [
      make("th", name, { scope: "row" }), make("td", text),
    ], { className: differs.includes(place) ? "differs" : "" }));
    if (!values.length) return;
    about.append(make("details", [
      make("summary", `${values.length} parameter${values.length === 1 ? "" : "s"}`),
      make("table", [head(["parameter", "value"], false), make("tbody", values)], { className: "plain" }),
    ], { className: "params" }));
  };
  const details = (row, open) => {
    if (open) fill(row);
    row.nextElementSibling.classList.toggle("open", open);
    row.querySelector(".more").setAttribute("aria-expanded", open);
  };
  for (const more of document.querySelectorAll(".more")) {
    more.addEventListener("click", () => {
      const row = more.closest("tr"), open = more.getAttribute("aria-expanded") !== "true";
      details(row, open);
      address({ open: [...asked("open").filter(id => id !== row.id), open && row.id] });
    });
  }
  const openAsAsked = () => {
    for (const id of asked("open")) {
      const row = $(id);
      if (row?.classList.contains("entry")) details(row, true);
    }
  };
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
    if (text || Object.values(chosen).some(Boolean)) finish();
    const wanted = row => fields.every(field => fits(row, field, chosen)) && row.dataset.method.toLowerCase().includes(text);
    let shown = 0, all = 0;
    for (const section of document.querySelectorAll(".board, .overview, .reported")) {
      let rows = 0;
      for (const row of section.querySelectorAll("tbody > tr[data-method]")) {
        row.hidden = !wanted(row);
        if (row.nextElementSibling?.classList.contains("detail")) {
          row.nextElementSibling.hidden = row.hidden;
          marks.get(row)?.toggleAttribute("hidden", row.hidden);
        }
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
    const gone = fields.filter(field => $(field).selectedOptions[0]?.dataset.gone).map(field => `${field}=${chosen[field]}`);
    $("nothing").textContent = gone.length ? `No rows for ${gone.join(", ")}: this page has none any more.` : "No result fits these filters.";
    $("nothing").hidden = shown > 0;
    address({ ...chosen, text });
  };

  // The rows that a board shows, as a file.
  const cell = text => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const guarded = text => /^[=+@\t\r\n-]/.test(text) ? "'" + text : text; // a spreadsheet would run it
  const about = row => Object.fromEntries(own.get(row).about.map((index, place) => [known.about[place], told(index)]));
  const csv = (table, rows) => {
    const headings = [...table.tHead.rows[0].cells];
    const lines = [["method", "trained on", "preset", ...headings.flatMap((heading, index) => {
      const name = heading.dataset.csv || heading.querySelector(".sort")?.textContent;
      return !name || index === 1 ? [] : name === "#" ? ["rank"] : heading.dataset.interval ? [name, name + " low", name + " high"] : [name];
    }), ...known.about]];
    for (const row of rows) lines.push([guarded(row.cells[1].dataset.v), guarded(row.dataset.source), guarded(row.dataset.preset), ...headings.flatMap((heading, index) => {
      if (index === 1 || !heading.querySelector(".sort")) return [];
      const ends = (row.cells[index].querySelector(".ci")?.textContent || "").split("–");
      return heading.dataset.interval ? [row.cells[index].dataset.v ?? "", ends[0], ends[1] ?? ""] : [row.cells[index].dataset.v ?? ""];
    }), ...Object.values(about(row)).map(guarded)]);
    return lines.map(line => line.map(cell).join(",")).join("\n") + "\n";
  };
  const bib = (board, rows) => {
    const tex = text => text.replace(/[\\{}`]/g, "").replace(/[&%$#_]/g, "\\$&");
    const linked = text => text && `\\url{${text.replace(/[\\{}]/g, encodeURIComponent)}}`;
    const name = text => `{${tex(text)}}`; // as it is written: one name, not first and last
    const entry = (key, fields) => `@misc{${key.replace(/[^A-Za-z0-9-]+/g, "-")},\n${fields.filter(([, text]) => text).map(([field, text]) => `  ${field} = {${text}}`).join(",\n")}\n}\n`;
    const found = new Map([["board", entry("adbench-" + board.id, [
      ["title", tex("adbench leaderboard: " + board.querySelector("h2").textContent.replace(/\s+/g, " ").trim())],
      ["howpublished", linked(location.href)], ["note", tex(document.querySelector("footer").textContent.split(" with ")[0])],
    ])]]);
    for (const row of rows) {
      const { submitter, paper, code, date, "scored from maps": maps } = about(row);
      const [cite, number] = own.get(row).paper.map(told);
      const author = cite.split(/ et al\.?|, /)[0], year = (cite.match(/\b(?:19|20)\d\d\b/) || [""])[0];
      if (cite) found.set(row.dataset.method, entry(row.dataset.method, [
        ["author", tex(/ et al/.test(cite) ? author + " and others" : author)], ["note", tex(cite)],
        ["year", year], ["eprint", number], ["archiveprefix", number && "arXiv"],
      ]));
      else if (paper || code) found.set(row.dataset.method + " " + submitter, entry(row.dataset.method + " " + submitter, [
        ["title", name(row.dataset.method)], ["author", name(submitter)], ["year", date.slice(0, 4)],
        ["howpublished", linked(paper || code)],
        ["note", (maps === "yes" ? "Scored from maps that were sent in. " : "") + (paper && code ? `Code: ${linked(code)}` : "")],
      ]));
    }
    return [...found.values()].join("\n");
  };
  for (const line of document.querySelectorAll(".take")) {
    line.hidden = false;
    line.addEventListener("click", event => {
      const kind = event.target.dataset.take;
      if (!kind) return;
      const board = line.closest(".board"), table = board.querySelector(".results");
      const rows = [...table.tBodies[0].rows].filter(row => row.classList.contains("entry") && !row.hidden);
      const text = kind === "csv" ? csv(table, rows) : bib(board, rows);
      make("a", "", { href: "data:text/plain;charset=utf-8," + encodeURIComponent(text), download: `${board.id}.${kind}` }).click();
    });
  }
  $("link").addEventListener("click", async () => {
    let said = "Copied";
    try { await navigator.clipboard.writeText(location.href); } catch { said = "Not copied: take the address above"; } // not every browser gives one to every page
    $("link").textContent = said;
    setTimeout(() => { $("link").textContent = "Copy link"; }, 2500);
  });
  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { address({ sort: "", open: "" }); filter(); }));
  for (const field of [...fields, "text"]) {
    const [wanted] = asked(field);
    if (!wanted) continue;
    if (field !== "text" && ![...$(field).options].some(option => option.value === wanted)) {
      $(field).append(make("option", wanted, { value: wanted })); // of rows that have gone since the link was made
      $(field).lastChild.dataset.gone = "1";
    }
    $(field).value = wanted;
  }
  // Where a table is wider than its place, a line says that it scrolls.
  const watch = new ResizeObserver(seen => {
    for (const { target } of seen) target.previousElementSibling.hidden = target.scrollWidth <= target.clientWidth + 1;
  });
  document.querySelectorAll(".scroll").forEach(box => watch.observe(box));
  filter();
  sortAsAsked();
  openAsAsked();
  arrive();
})();
