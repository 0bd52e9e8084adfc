"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  if (!byId("responses")) return;
  const state = { split: "", index: 0, measure: data.measures.length ? data.measures[0].key : "", verdict: "" };

  // Everything from models and data becomes a text node: nothing of it is ever parsed as HTML.
  const element = (name, text, attributes) => {
    const node = document.createElement(name);
    if (text !== undefined && text !== null) node.textContent = text;
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    return node;
  };
  const option = (value, text) => element("option", text, { value });
  const number = (value) => (value === undefined || value === null ? "no number" : Number(value.toPrecision(3)).toString());
  const mark = (correct) => (correct === null ? "not graded" : correct ? "right" : "wrong");

  const matches = (problem) => {
    const verdicts = problem.responses.map((response) => response.correct);
    if (problem.split !== state.split) return false;
    if (state.verdict === "right") return verdicts.includes(true);
    if (state.verdict === "wrong") return verdicts.includes(false);
    if (state.verdict === "differ") return verdicts.includes(true) && verdicts.includes(false);
    return true;
  };
  let visible = [];

  // The scale ends at the 99th percentile of absolute values over all responses, so that colours compare.
  const ends = {};
  for (const measure of data.measures) {
    const values = [];
    for (const problem of data.problems)
      for (const response of problem.responses)
        for (const value of response.values[measure.key] || []) if (value !== null) values.push(Math.abs(value));
    values.sort((a, b) => a - b);
    ends[measure.key] = values.length ? values[Math.min(values.length - 1, Math.floor(0.99 * values.length))] || 1 : 1;
  }
  const colour = (value, key) => {
    const strength = Math.min(1, Math.abs(value) / ends[key]) * 0.6;
    return `rgb(var(${value < 0 ? "--low" : "--high"}) / ${strength.toFixed(3)})`;
  };

  const describe = (response, position) => {
    const piece = response.pieces[position];
    const numbers = data.measures
      .filter((measure) => response.values[measure.key])
      .map((measure) => `${measure.title} ${number(response.values[measure.key][position])}`);
    return `${JSON.stringify(piece)}: ${numbers.join(", ") || "no numbers"}`;
  };

  const tokens = (response, label) => {
    const box = element("div", null, { class: "tokens", tabindex: "0", role: "group" });
    box.setAttribute("aria-label", `${label}: ${response.pieces.join("")}. Arrow keys move from token to token.`);
    const reading = element("div", "", { class: "reading" });
    const values = response.values[state.measure];
    let current = -1;
    const show = (position, aloud) => {
      if (current >= 0) box.children[current].style.outline = "";
      current = position;
      box.children[position].style.outline = "2px solid var(--ink)";
      reading.textContent = describe(response, position);
      if (aloud) byId("announcer").textContent = reading.textContent;
    };
    response.pieces.forEach((piece, position) => {
      const token = element("span", piece, { "data-token": position });
      if (values && values[position] !== null) token.style.backgroundColor = colour(values[position], state.measure);
      box.append(token);
    });
    box.addEventListener("mouseover", (event) => {
      const position = event.target.dataset.token;
      if (position !== undefined) show(Number(position), false);
    });
    box.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
      if (!(event.key in steps)) return;
      event.preventDefault();
      const last = response.pieces.length - 1;
      show(Math.max(0, Math.min(last, current + steps[event.key])), true);
    });
    return [box, reading];
  };

  const card = (response) => {
    const verdict = mark(response.correct);
    const label = `${data.runs[response.run]}, step ${response.step}`;
    const title = element("h3", `${label}: `);
    title.append(element("span", verdict, { class: response.correct === null ? "muted" : verdict }));
    if (response.truncated) title.append(" (cut off)");
    const article = element("article", null, { class: "card" });
    article.append(title, ...tokens(response, label));
    return article;
  };

  const question = (problem) => {
    const box = element("div", null, { class: "problem" });
    for (const index of problem.images) {
      const image = element("img", null, { src: data.images[index], alt: `Image of problem ${problem.id}` });
      image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= 128));
      box.append(image);
    }
    const words = element("div");
    const line = (name, text) => {
      const paragraph = element("p");
      paragraph.append(element("strong", `${name}: `), text);
      words.append(paragraph);
    };
    line("Question", problem.question);
    if (problem.answer !== null) line("Gold answer", problem.answer);
    for (const [kind, text] of Object.entries(problem.hint)) line(`Teacher's ${kind}`, text);
    box.append(words);
    return box;
  };

  const render = () => {
    const problem = visible[state.index];
    byId("question").replaceChildren(problem ? question(problem) : element("p", "No problem matches."));
    byId("cards").replaceChildren(...(problem ? problem.responses.map(card) : []));
    byId("problem").value = String(state.index);
    const measure = data.measures.find((other) => other.key === state.measure);
    const unit = measure && measure.unit ? ` ${measure.unit}` : "";
    const end = measure ? number(ends[measure.key]) : "";
    byId("scale").textContent = !measure
      ? "These runs have recorded no numbers of tokens."
      : measure.signed
        ? `${measure.title}: blue below 0, orange above; full colour from ±${end}${unit} (99th percentile).`
        : `${measure.title}: from 0 (no colour) to ${end}${unit} and more (99th percentile).`;
  };

  const filter = () => {
    visible = data.problems.filter(matches);
    state.index = 0;
    byId("problem").replaceChildren(
      ...visible.map((problem, index) => option(String(index), `${index + 1}. ${problem.question.slice(0, 70)}`)),
    );
    render();
  };
  const move = (step) => {
    if (!visible.length) return;
    state.index = (state.index + step + visible.length) % visible.length;
    render();
  };

  const titles = { "held-out": "held-out problems", training: "training problems" };
  const splits = [...new Set(data.problems.map((problem) => problem.split))];
  state.split = splits[0];
  byId("split").replaceChildren(...splits.map((split) => option(split, titles[split])));
  for (const measure of data.measures) {
    const label = element("label");
    const radio = element("input", null, { type: "radio", name: "measure", value: measure.key });
    radio.checked = measure.key === state.measure;
    radio.addEventListener("change", () => {
      state.measure = measure.key;
      render();
    });
    label.append(radio, ` ${measure.title}`);
    byId("measure-switch").append(label);
  }
  byId("split").addEventListener("change", (event) => {
    state.split = event.target.value;
    filter();
  });
  byId("verdict").addEventListener("change", (event) => {
    state.verdict = event.target.value;
    filter();
  });
  byId("problem").addEventListener("change", (event) => {
    state.index = Number(event.target.value);
    render();
  });
  byId("previous").addEventListener("click", () => move(-1));
  byId("next").addEventListener("click", () => move(1));
  byId("measure-switch").hidden = !data.measures.length;
  filter();
})();
