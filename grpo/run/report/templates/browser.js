// The browser of completions. What a model wrote only ever becomes text nodes, never markup.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const form = $("filters"), list = $("list"), detail = $("detail");
  if (!form) return;
  const PAGE = 200; // rows that are made at a time
  let entries = [], shown = [], chosen = null, tokenAt = -1;

  const read = () => {
    entries = JSON.parse($("data").textContent).flatMap((group) =>
      group.completions.map((c, place) => ({ ...c, group, id: `${group.line}.${place}`, step: group.step })));
    const steps = [...new Set(entries.map((e) => e.step))];
    const before = form.step.value;
    form.step.replaceChildren(new Option("all", ""), ...steps.map((s) => new Option(s, s)));
    form.step.value = steps.includes(+before) ? before : "";
  };
  const number = (value, digits = 3) => (value === undefined ? "–" : value.toFixed(digits).replace("-", "−"));
  const make = (tag, text, cls) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (cls) element.className = cls;
    return element;
  };

  function filter() {
    const words = form.problem.value.trim().toLowerCase(), outcome = form.outcome.value;
    shown = entries.filter((e) =>
      (form.step.value === "" || e.step === +form.step.value) &&
      (!words || `${e.group.problem} ${e.group.question}`.toLowerCase().includes(words)) &&
      (!outcome || (outcome === "truncated" ? e.truncated : e.outcome === outcome)));
    const key = form.sort.value.replace("-", ""), sign = form.sort.value.startsWith("-") ? -1 : 1;
    const value = (e) => e[key] ?? sign * Infinity; // what lacks the number comes last
    shown.sort((a, b) => sign * (value(a) - value(b)) || a.step - b.step || a.group.line - b.group.line);
    $("count").textContent = `${shown.length} of ${entries.length} completions`;
    list.replaceChildren();
    more();
    choose(shown.includes(chosen) ? chosen : shown[0]);
  }

  function more() { // rows are made as they are scrolled to
    const start = list.childElementCount;
    list.append(...shown.slice(start, start + PAGE).map((e) => {
      const row = make("div"), top = make("div"), cut = e.truncated ? ", truncated" : "";
      row.id = `row-${e.id}`;
      row.setAttribute("role", "option");
      top.append(`${number(e.advantage, 2)}  `, make("span", e.outcome, e.outcome.split(" ")[0]), cut);
      row.append(top, make("div", `step ${e.step} · ${e.group.problem}`));
      row.onclick = () => choose(e);
      return row;
    }));
  }

  function choose(entry) {
    list.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
    chosen = entry;
    tokenAt = -1;
    if (!entry) {
      list.removeAttribute("aria-activedescendant");
      detail.replaceChildren(make("p", "No completion fits these filters."));
      return;
    }
    while (list.childElementCount <= shown.indexOf(entry)) more();
    const row = $(`row-${entry.id}`);
    row.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", row.id);
    list.scrollTop = Math.min(row.offsetTop, Math.max(list.scrollTop, row.offsetTop + row.offsetHeight - list.clientHeight));
    show(entry);
    remember();
  }

  function show(e) {
    const facts = make("dl", undefined, "facts");
    const add = (name, value) => { const d = make("div"); d.append(make("dt", name), make("dd", value)); facts.append(d); };
    add("reward", number(e.reward, 2));
    add("format · answer", `${number(e.format_reward, 2)} · ${number(e.answer_reward, 2)}`);
    add("advantage", number(e.advantage));
    add("outcome", `${e.outcome}${e.reason ? ` (${e.reason})` : ""}`);
    add("read · gold", `${e.read || "–"} · ${e.group.gold}`);
    add("tokens", `${e.num_tokens ?? "–"}${e.truncated ? ", truncated" : ""}`);
    add("log-prob, nats", number(e.log_prob, 2));
    const group = make("button", "the group of this completion");
    group.type = "button";
    group.onclick = () => { form.step.value = e.step; form.problem.value = e.group.problem; form.outcome.value = ""; filter(); };
    const text = make("div"), token = make("p");
    text.id = "text";
    token.id = "token";
    const tokens = e.tokens?.map((t, i) => { const s = make("span", t); s.dataset.t = i; return s; });
    text.append(...(tokens ?? [e.text]));
    detail.replaceChildren(make("h3", e.group.question), make("p", `step ${e.step}, problem ${e.group.problem}`, "note"),
      group, facts, make("p", legend(e), "note"), token, text);
    tokens?.forEach((s, i) => { s.style.background = colour(e, i); });
    if (e.left_out) detail.append(make("p", `${e.left_out} characters are left out of the middle.`, "note"));
    text.onpointerover = (event) => { if (event.target.dataset.t) tell(+event.target.dataset.t); };
  }

  function colour(e, i) {
    if (form.colour.value === "log_prob") return `rgb(var(--rare) / ${Math.min(0.75, -e.log_probs[i] / 500)})`;
    if (form.colour.value !== "ratio" || !e.ratios) return "";
    const bend = Math.log(Math.max(1, e.ratios[i]) / 1000) / Math.log(1.5);
    return `rgb(var(${bend > 0 ? "--more" : "--rare"}) / ${Math.min(0.75, Math.abs(bend))})`;
  }
  function legend(e) {
    if (!e.tokens) return "No log-probs of single tokens are recorded here: the text is not coloured.";
    if (form.colour.value === "log_prob") return "The stronger the colour, the less likely the token was when it was sampled.";
    if (form.colour.value !== "ratio") return "";
    return e.ratios ? "Blue: the trained policy gives the token a higher probability than the engine did; orange: a lower one."
      : "Ratios are all 1 here, or not recorded: no colour.";
  }
  function tell(i) {
    tokenAt = i;
    const p = Math.exp(chosen.log_probs[i] / 100), ratio = chosen.ratios ? `, ratio ${number(chosen.ratios[i] / 1000)}` : "";
    $("token").textContent = `token ${i + 1} ${JSON.stringify(chosen.tokens[i])}: ` +
      `log-prob ${number(chosen.log_probs[i] / 100, 2)}, probability ${p.toPrecision(2)}${ratio}`;
    document.querySelector("#text .here")?.classList.remove("here");
    document.querySelector(`#text [data-t="${i}"]`).classList.add("here");
  }

  // The address says what is shown, so that it can be passed on.
  const FIELDS = ["step", "problem", "outcome", "sort", "colour"];
  function remember() {
    const state = new URLSearchParams(FIELDS.filter((f) => form[f].value).map((f) => [f, form[f].value]));
    state.set("completion", chosen.id);
    history.replaceState(null, "", `#${state}`);
  }
  function recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    FIELDS.forEach((f) => { if (state.has(f)) form[f].value = state.get(f); });
    form.querySelectorAll("select").forEach((s) => { if (s.selectedIndex < 0) s.selectedIndex = 0; });
    chosen = entries.find((e) => e.id === state.get("completion")) ?? chosen;
  }

  form.oninput = filter;
  form.onsubmit = (event) => event.preventDefault();
  list.onscroll = () => { if (list.scrollTop + list.clientHeight > list.scrollHeight - 200) more(); };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName), inList = event.target === list;
    if (event.key === "Escape" && typing) { list.focus(); return; }
    if (typing) return;
    const to = { j: 1, k: -1, ...(inList && { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }) }[event.key];
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const within = (place, length) => Math.max(0, Math.min(length - 1, place));
    if (event.key === "/") form.problem.focus();
    else if (to && shown.length) choose(shown[within(shown.indexOf(chosen) + to, shown.length)]);
    else if (by && chosen?.tokens?.length && (inList || detail.contains(event.target))) tell(within(tokenAt + by, chosen.tokens.length));
    else return;
    event.preventDefault();
  });
  const start = () => { read(); recall(); filter(); };
  window.addEventListener("hashchange", () => { recall(); filter(); });
  document.addEventListener("report-changed", () => { const id = chosen?.id; read(); chosen = entries.find((e) => e.id === id); filter(); });
  start();
})();
