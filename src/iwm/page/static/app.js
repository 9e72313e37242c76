"use strict";
// Asks the server that this page came from, and nobody else. One question of a tab is on its way at a time; what changes
// meanwhile is asked when its answer is there, so a slider never queues.

const $ = (selector, within = document) => within.querySelector(selector);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const signed = (value, digits = 2) => {
  const size = Math.abs(value).toFixed(digits);
  return Number(size) ? (value < 0 ? "−" : "+") + size : size;
};
const decibels = (value) => `${value.toFixed(1)} dB`;

let world;
const choosers = {};

async function ask(path, body, headers = { "Content-Type": "application/json" }) {
  let response;
  try {
    response = await fetch(path, body === undefined ? {} : { method: "POST", headers, body });
  } catch {
    throw new Error("The page’s server does not answer; is iwm app still running?");
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.error || `The server answered ${response.status}; ask again.`);
  return content;
}

function complain(panel, error) {
  const place = $(".error", panel);
  place.textContent = error ? error.message : "";
  place.hidden = !error;
}

// ---- one question at a time -----------------------------------------------------------------------------------------

function asker(panel, question, show) {
  let running = false, again = false;
  return async function run() {
    if (running) {
      again = true;
      return;
    }
    running = true;
    const slow = setTimeout(() => panel.setAttribute("aria-busy", "true"), 400);
    try {
      do {
        again = false;
        try {
          show(await question());
          complain(panel);
        } catch (error) {
          complain(panel, error);
        }
      } while (again);
    } finally {
      clearTimeout(slow);
      panel.removeAttribute("aria-busy");
      running = false;
    }
  };
}

// ---- choosing an image ----------------------------------------------------------------------------------------------

function addChooser(place, changed) {
  const { name, legend } = place.dataset;
  const panel = place.closest("section");
  const strip = make("div", { className: "strip" });
  const file = make("input", { type: "file", accept: "image/jpeg,image/png,image/webp,image/gif,image/bmp" });
  file.setAttribute("aria-label", `Upload an image: ${legend}`);
  const button = make("span", { className: "button" }, "Upload an image", file);
  const set = make("fieldset", {}, make("legend", { textContent: legend }), strip);
  place.append(set, make("p", { className: "upload" }, button, make("span", { textContent: world.limits })));
  const chooser = {
    key: "",
    add(image, chosen = false, first = false) {
      const existing = [...strip.querySelectorAll("input")].find((one) => one.value === image.key);
      if (existing) {
        if (chosen) chooser.choose(existing);
        return;
      }
      const radio = make("input", { type: "radio", name, value: image.key });
      const picture = make("img", { src: image.picture || `api/pictures/${image.key}.png`, alt: image.name, loading: "lazy" });
      const label = make("label", { title: image.name }, radio, picture);
      first ? strip.prepend(label) : strip.append(label);
      radio.addEventListener("change", () => chooser.choose(radio));
      if (chosen) chooser.choose(radio);
    },
    choose(radio) {
      radio.checked = true;
      chooser.key = radio.value;
      changed();
    },
  };
  async function upload(chosen) {
    if (!chosen) return;
    try {
      if (chosen.size > world.bytes) throw new Error(`The file is larger than is taken; choose ${world.limits}`);
      const headers = { "Content-Type": "application/octet-stream", "X-File-Name": encodeURIComponent(chosen.name) };
      const image = await ask("api/images", chosen, headers);
      complain(panel);
      for (const other of Object.values(choosers)) other.add(image, other === chooser, true);
    } catch (error) {
      complain(panel, error);
    }
  }
  file.addEventListener("change", () => {
    upload(file.files[0]);
    file.value = "";
  });
  place.addEventListener("dragover", (event) => {
    event.preventDefault();
    place.classList.add("over");
  });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("over");
    upload(event.dataTransfer.files[0]);
  });
  choosers[name] = chooser;
  for (const image of world.images) chooser.add(image);
  return chooser;
}

// ---- sliders --------------------------------------------------------------------------------------------------------

function addSliders(form, prefix, changed) {
  const inputs = [];
  for (const spec of world.sliders) {
    const id = `${prefix}-${spec.name}`;
    const isSwitch = !spec.graded && spec.low === 0;
    const input = make("input", { id, type: isSwitch ? "checkbox" : "range" });
    const output = make("output", { htmlFor: id });
    const digits = spec.graded ? Math.max(0, Math.ceil(-Math.log10(spec.step))) : 0;
    const one = {
      name: spec.name,
      read: () => (isSwitch ? Number(input.checked) : Number(input.value)),
      write(value) {
        isSwitch ? (input.checked = value > 0) : (input.value = value);
        one.show();
      },
      show() {
        if (isSwitch) return;
        output.textContent = one.read() ? signed(one.read(), digits) : "as it is";
        input.setAttribute("aria-valuetext", output.textContent);
      },
    };
    if (isSwitch) input.setAttribute("role", "switch");
    else Object.assign(input, { min: spec.low, max: spec.high, step: spec.step });
    const label = make("label", { htmlFor: id, textContent: spec.label });
    const hint = spec.hint ? [make("small", { id: `${id}-hint`, textContent: spec.hint })] : [];
    if (spec.hint) input.setAttribute("aria-describedby", `${id}-hint`);
    form.append(
      isSwitch
        ? make("div", { className: "slider" }, make("div", { className: "switch" }, input, make("div", {}, label, ...hint)))
        : make("div", { className: "slider" }, make("div", {}, label, output), input, ...hint),
    );
    input.addEventListener("input", () => {
      one.show();
      changed();
    });
    one.write(0);
    inputs.push(one);
  }
  const reset = make("button", { type: "button", textContent: "Reset all" });
  reset.addEventListener("click", () => {
    for (const one of inputs) one.write(0);
    changed();
  });
  form.append(reset);
  form.addEventListener("submit", (event) => event.preventDefault());
  return {
    action: () => Object.fromEntries(inputs.filter((one) => one.read()).map((one) => [one.name, one.read()])),
    write: (name, value) => inputs.find((one) => one.name === name)?.write(value),
  };
}

function put(panel, name, source, alt, words, verdict = "") {
  const figure = $(`[data-picture=${name}]`, panel);
  figure.hidden = !source;
  if (!source) return;
  Object.assign($("img", figure), { src: source, alt });
  if (words !== undefined) $("span", figure).textContent = words;
  figure.className = verdict;
}

// ---- imagine --------------------------------------------------------------------------------------------------------

function startImagining() {
  const panel = $("#imagine");
  const run = asker(
    panel,
    () => ask("api/imagine", JSON.stringify({ image: choosers.image.key, action: sliders.action() })),
    (answer) => {
      showImagined(panel, answer);
      if (answer.ranked < answer.bank) setTimeout(run, 300);
    },
  );
  const changed = () => choosers.image?.key && run();
  const sliders = addSliders($("form", panel), "imagine", changed);
  addChooser($(".chooser", panel), changed);
  $("#to-find").addEventListener("click", async () => {
    try {
      const body = JSON.stringify({ image: choosers.image.key, action: sliders.action() });
      const image = await ask("api/changed", body);
      for (const other of Object.values(choosers)) other.add(image, other === choosers.after, true);
      choosers.before.add({ key: choosers.image.key }, true);
      select("find", true);
      $("#find-now").click();
    } catch (error) {
      complain(panel, error);
    }
  });
}

function showImagined(panel, answer) {
  const { pictures, words } = answer;
  const changes = words !== "as it is";
  put(panel, "source", pictures.source, "The image that the model sees");
  put(panel, "truth", pictures.truth, `The really changed image: ${words}`, words);
  const seen = answer.psnr_prediction !== undefined;
  put(panel, "imagined", pictures.imagined, `What the model imagines: ${words}`, seen ? decibels(answer.psnr_prediction) : "");
  put(panel, "decoded", pictures.decoded, "The really changed image after the decoder", seen ? `${decibels(answer.psnr_truth)} at best` : "");
  const nearest = answer.nearest_is_truth ? "is the truth" : `is ${answer.nearest_words}`;
  put(panel, "nearest", pictures.nearest, `The nearest of ${answer.ranked} versions ${nearest}`, nearest, answer.nearest_is_truth ? "right" : "wrong");
  const share = answer.explained === null ? "nothing changes" : answer.explained < 0 ? "farther than no change" : `${Math.round(100 * answer.explained)} % of the change is right`;
  put(panel, "map", pictures.map, `Map of the difference between prediction and truth, on average ${Math.round(100 * answer.missed)} % of that of two random versions`, share);
  const rank = make("b", { className: answer.rank === 1 ? "good" : "bad", textContent: `Rank ${answer.rank} of ${answer.ranked}` });
  const meaning = answer.rank === 1 ? ": the really changed image is nearest to what the model imagines." : ": other versions are nearer to what the model imagines than the really changed image.";
  const unchanged = seen && changes ? ` Left as it is, the image has ${decibels(answer.psnr_unchanged)}.` : "";
  const waiting = answer.ranked < answer.bank ? ` ${answer.bank - answer.ranked} more versions are being encoded.` : "";
  $(".verdict", panel).replaceChildren(rank, meaning + unchanged + waiting);
}

// ---- find the change ------------------------------------------------------------------------------------------------

function startFinding() {
  const panel = $("#find");
  for (const place of panel.querySelectorAll(".chooser")) addChooser(place, () => {});
  const button = $("#find-now");
  button.addEventListener("click", async () => {
    const { before, after } = choosers;
    if (!before.key || !after.key) return complain(panel, new Error("Choose an image before and one after the change."));
    button.disabled = true;
    $(".verdict", panel).textContent = "Searching …";
    try {
      const question = { source: before.key, target: after.key, undo: $("#undo").checked };
      showFound(panel, await ask("api/infer", JSON.stringify(question)), question);
      complain(panel);
    } catch (error) {
      $(".verdict", panel).textContent = "";
      complain(panel, error);
    }
    button.disabled = false;
  });
}

function showFound(panel, answer, question) {
  const value = (row, number) => (number === null ? "" : row.graded ? signed(number) : number > 0.5 ? "undo" : number < -0.5 ? "add" : "no");
  const known = answer.rows.some((row) => row.truth !== null);
  $("thead th:last-child", panel).hidden = !known;
  $("tbody", panel).replaceChildren(
    ...answer.rows.map((row) => {
      const cells = [row.predictor, row.pixels, ...(known ? [row.truth] : [])];
      const head = make("th", { scope: "row", textContent: row.label });
      return make("tr", {}, head, ...cells.map((cell) => make("td", { textContent: value(row, cell) })));
    }),
  );
  const { predictor, pixels } = answer.results;
  put(panel, "before", `api/pictures/${question.source}.png`, "The image before the change", `${decibels(answer.unchanged)} if left as it is`);
  put(panel, "after", `api/pictures/${question.target}.png`, "The image after the change", "");
  put(panel, "predictor", predictor.picture, `The first image changed as the model says: ${predictor.words}`, decibels(predictor.psnr));
  put(panel, "pixels", pixels.picture, `The first image changed as the pixels say: ${pixels.words}`, decibels(pixels.psnr));
  $("#found", panel).hidden = false;
  const poor = answer.residual > 0.9 * answer.null_residual ? " No action explains the second image much better than leaving the first as it is." : "";
  $(".verdict", panel).textContent = `The model says: ${predictor.words}. Pixels say: ${pixels.words}.${poor}`;
}

// ---- search ---------------------------------------------------------------------------------------------------------

function startSearching() {
  const panel = $("#search");
  const run = asker(
    panel,
    () => ask("api/search", JSON.stringify({ image: choosers.query.key, action: sliders.action() })),
    (answer) => {
      showHits($("#hits-changed"), answer.nearest);
      showHits($("#hits-unchanged"), answer.unchanged);
      const waiting = answer.searched < answer.total;
      const searched = waiting ? `the first ${answer.searched} of ${answer.total} images so far` : `${answer.total} images`;
      $(".verdict", panel).textContent = `Asked for: this image, ${answer.words}. Searched: ${answer.source}, ${searched}.`;
      if (waiting && !panel.hidden) setTimeout(run, 1000);
    },
  );
  const changed = () => choosers.query?.key && !panel.hidden && run();
  const sliders = addSliders($("form", panel), "search", changed);
  addChooser($(".chooser", panel), changed);
  const darker = world.sliders.find((spec) => spec.name === "brightness");
  if (darker) sliders.write("brightness", darker.low);
  return changed;
}

function showHits(list, hits) {
  list.replaceChildren(
    ...hits.map((hit) => {
      const lighter = Math.round(100 * hit.brightness);
      const words = lighter ? `${Math.abs(lighter)} % ${lighter > 0 ? "lighter" : "darker"}` : "as light";
      return make("li", {}, make("img", { src: `api/pictures/${hit.key}.png`, alt: hit.name, title: hit.name }), words);
    }),
  );
}

// ---- tabs -----------------------------------------------------------------------------------------------------------

const tabs = [...document.querySelectorAll("[role=tab]")];
const whenShown = {};

function select(name, focus = false) {
  for (const tab of tabs) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    $(`#${tab.getAttribute("aria-controls")}`).hidden = !chosen;
    if (chosen && focus) tab.focus();
  }
  history.replaceState(null, "", `#${name}`);
  whenShown[name]?.();
}

function startTabs() {
  for (const [place, tab] of tabs.entries()) {
    tab.addEventListener("click", () => select(tab.id.slice(4)));
    tab.addEventListener("keydown", (event) => {
      const last = tabs.length - 1;
      const next = { ArrowRight: place === last ? 0 : place + 1, ArrowLeft: place ? place - 1 : last, Home: 0, End: last }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      select(tabs[next].id.slice(4), true);
    });
  }
  const asked = location.hash.slice(1);
  select(tabs.some((tab) => tab.id === `tab-${asked}`) ? asked : "imagine");
}

async function start() {
  try {
    world = await ask("api/world");
  } catch (error) {
    return complain($("#imagine"), error);
  }
  const millions = (world.parameters / 1e6).toFixed(1);
  $("#facts").textContent = `${world.run}: a world model of ${millions} million parameters for images of ${world.size} pixels${world.local ? ", on this machine only" : ""}.${world.decodes ? "" : " Fit a pixel decoder (iwm decoder RUN) to see what it imagines."}`;
  startImagining();
  startFinding();
  whenShown.search = startSearching();
  const [first] = world.images;
  choosers.before.add(first, true);
  choosers.query.add(first, true);
  choosers.image.add(first, true);
  startTabs();
}

start();
