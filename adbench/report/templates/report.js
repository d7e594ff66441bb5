(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const name = () => { button.textContent = dark() ? "light" : "dark"; button.setAttribute("aria-label", "Switch to the " + button.textContent + " theme"); };
  button.hidden = false; name();
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });

  for (const what of ["truth", "found"]) {
    const box = document.getElementById("show-" + what);
    box?.addEventListener("change", () => document.body.classList.toggle("no-" + what, !box.checked));
  }

  root.classList.add("js");
  for (const portrait of document.querySelectorAll(".portrait")) {
    const slices = [...portrait.querySelectorAll(".slice")];
    const bar = document.createElement("div");
    bar.className = "steps"; bar.setAttribute("role", "group"); bar.setAttribute("aria-label", "Slices");
    const show = wanted => slices.forEach((slice, index) => {
      slice.classList.toggle("on", index === wanted);
      bar.children[index]?.setAttribute("aria-pressed", index === wanted);
    });
    if (slices.length > 1) {
      slices.forEach((slice, index) => {
        const step = document.createElement("button");
        step.type = "button"; step.textContent = slice.dataset.name;
        step.addEventListener("click", () => show(index));
        step.addEventListener("keydown", event => {
          const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
          if (!move) return;
          event.preventDefault();
          const next = (index + move + slices.length) % slices.length;
          show(next); bar.children[next].focus();
        });
        bar.append(step);
      });
      portrait.querySelector("h3").after(bar);
    }
    show(Math.floor((slices.length - 1) / 2));
  }

  const large = document.getElementById("large");
  document.addEventListener("click", event => {
    const tile = event.target.closest("button.tile");
    if (tile) {
      large.querySelector("p").textContent = tile.querySelector("svg").getAttribute("aria-label");
      large.querySelector("div").replaceChildren(tile.querySelector("svg").cloneNode(true));
      large.showModal();
    } else if (event.target === large) large.close();
  });
  const open = () => { const run = location.hash.startsWith("#run-") && document.getElementById(location.hash.slice(1)); if (run) run.open = true; };
  addEventListener("hashchange", open); open();
})();
