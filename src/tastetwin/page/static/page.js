"use strict";
// Suggestions while an id is typed: an editable combobox with a listbox (WAI-ARIA APG). Without this, the form still works.
for (const input of document.querySelectorAll("[data-suggest]")) {
  const list = document.getElementById(input.dataset.suggest);
  const set = (name, value) => input.setAttribute(`aria-${name}`, value);
  let at = -1, asked = 0, timer = 0;
  input.setAttribute("role", "combobox");
  set("autocomplete", "list");
  set("controls", list.id);
  set("expanded", "false");
  const close = () => { list.hidden = true; at = -1; set("expanded", "false"); input.removeAttribute("aria-activedescendant"); };
  const mark = (to) => {
    const options = [...list.children];
    if (!options.length) return;
    at = (to + options.length) % options.length;
    options.forEach((option, i) => option.setAttribute("aria-selected", String(i === at)));
    set("activedescendant", options[at].id);
  };
  const take = (option) => { input.value = option.dataset.id; close(); input.form.requestSubmit(); };
  const show = (users) => {
    list.replaceChildren(...users.map((user, i) => {
      const option = document.createElement("li");
      option.id = `${list.id}-${i}`;
      option.setAttribute("role", "option");
      option.setAttribute("aria-selected", "false");
      option.dataset.id = user;
      option.textContent = user;
      option.addEventListener("mousedown", (event) => { event.preventDefault(); take(option); });
      return option;
    }));
    at = -1;
    list.hidden = !users.length;
    set("expanded", String(!list.hidden));
    input.removeAttribute("aria-activedescendant");
  };
  const ask = async () => {
    const mine = ++asked;
    if (!input.value) return close();
    const answer = await fetch(`/suggest?q=${encodeURIComponent(input.value.slice(0, 200))}`);
    if (mine === asked && answer.ok) show((await answer.json()).users);
  };
  input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(ask, 80); });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    else if (event.key === "ArrowDown") { if (list.hidden) ask(); else mark(at + 1); event.preventDefault(); }
    else if (event.key === "ArrowUp" && !list.hidden) { mark(at < 0 ? -1 : at - 1); event.preventDefault(); }
    else if (event.key === "Enter" && at >= 0) { event.preventDefault(); take(list.children[at]); }
  });
}
// The taste map: buttons, keys, wheel and drag change the viewBox.
for (const figure of document.querySelectorAll("[data-zoom]")) {
  const svg = figure.querySelector("svg");
  const whole = svg.getAttribute("viewBox").split(" ").map(Number);
  let [x, y, w, h] = whole, drag = null;
  const show = () => {
    w = Math.min(w, whole[2]); h = Math.min(h, whole[3]);
    x = Math.max(0, Math.min(x, whole[2] - w)); y = Math.max(0, Math.min(y, whole[3] - h));
    svg.setAttribute("viewBox", `${x} ${y} ${w} ${h}`);
    svg.classList.toggle("moved", w < whole[2]);
  };
  const zoom = (by, u = 0.5, v = 0.5) => {
    const to = Math.max(whole[2] / 16, Math.min(whole[2], w * by)), share = to / w;
    x += w * (1 - share) * u; y += h * (1 - share) * v; w = to; h *= share; show();
  };
  const move = (u, v) => { x += u * w; y += v * h; show(); };
  const reset = () => { [x, y, w, h] = whole; show(); };
  const keys = { "+": () => zoom(0.7), "=": () => zoom(0.7), "-": () => zoom(1 / 0.7), "0": reset,
    ArrowLeft: () => move(-0.15, 0), ArrowRight: () => move(0.15, 0), ArrowUp: () => move(0, -0.15), ArrowDown: () => move(0, 0.15) };
  const inside = (event) => { const box = svg.getBoundingClientRect(); return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]; };
  figure.querySelectorAll("[hidden]").forEach((each) => { each.hidden = false; });
  svg.setAttribute("tabindex", "0");
  svg.addEventListener("keydown", (event) => { if (keys[event.key] && !event.ctrlKey && !event.metaKey) { keys[event.key](); event.preventDefault(); } });
  svg.addEventListener("wheel", (event) => { if (event.ctrlKey || w < whole[2] || document.activeElement === svg) { zoom(event.deltaY < 0 ? 0.85 : 1 / 0.85, ...inside(event)); event.preventDefault(); } }, { passive: false });
  svg.addEventListener("pointerdown", (event) => { if (w < whole[2]) drag = inside(event); });
  svg.addEventListener("pointermove", (event) => { if (drag) { const to = inside(event); move(drag[0] - to[0], drag[1] - to[1]); drag = to; } });
  for (const end of ["pointerup", "pointerleave", "pointercancel"]) svg.addEventListener(end, () => { drag = null; });
  figure.querySelectorAll("[data-do]").forEach((button) => button.addEventListener("click", () => ({ in: () => zoom(0.7), out: () => zoom(1 / 0.7), whole: reset })[button.dataset.do]()));
}
