"use strict";

// Text reaches the document as text nodes only (textContent, append): nothing of it is ever parsed.

// ---- what the page holds; N characters, C cells in all layers, K guesses ----

const $ = (id) => document.getElementById(id);
const facts = JSON.parse($("facts").textContent);
const TYPES = { Int8Array, Uint8Array, Uint16Array, Uint32Array, Float32Array };

function decoded(name) {
  const source = $(`data-${name}`);
  const characters = atob(source.textContent);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; ++i) bytes[i] = characters.charCodeAt(i);
  return new TYPES[source.dataset.type](bytes.buffer);
}

const text = decoded("text"); // [N] indices of glyphs
const guesses = decoded("guesses"); // [N, K] likewise
const shares = decoded("shares"); // [N, K] probabilities, 65535 for 1
const came = decoded("came"); // [N - 1] which guess came true, 255: none
const losses = decoded("losses"); // [N - 1] of the next character, nats
const levels = decoded("levels"); // [C, N] activations, 127 for scales[c]
const division = facts.division; // of the errors; undefined without a training text
const oracles = division && decoded("oracles"); // [N - 1] what removes the next one, 255: no error
const N = text.length;
const K = facts.guesses;
const [SHOWN, NAME, LOOK] = [0, 1, 2]; // of a glyph
const NONE = 255;

const lines = new Uint32Array(N); // [N] the line that a character is in
const lineStarts = [0];
for (let n = 0; n < N; ++n) {
  lines[n] = lineStarts.length - 1;
  if (text[n] === facts.newline) lineStarts.push(n + 1);
}

// ---- what is chosen ----

// layer: an index of facts.layers. guesses: how many stand under a character. errors: the index in
// division.removed of those that are marked
const chosen = { layer: 0, cell: 0, guesses: K, contrast: false, errors: null };
const index = () => chosen.layer * facts.cells + chosen.cell; // of the cell among all C
const activation = (n) => (levels[index() * N + n] / 127) * facts.scales[index()];
const cellOf = (c) => ({ layer: Math.floor(c / facts.cells), cell: c % facts.cells });
const label = (c) => `${facts.layers[cellOf(c).layer]}·${cellOf(c).cell}`;
const signed = (x, digits = 2) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
const clamp = (x, least, most) => Math.min(Math.max(x, least), most);

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** The value of a variable of the style sheet. */
function styled(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// ---- colours ----

function channels(name) {
  const hex = styled(name);
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

/** The activation with the full colour: 1, or the cell's largest. */
function limit() {
  return facts.bounded && !chosen.contrast ? 1 : facts.scales[index()] || 1;
}

/** Red, green and blue of the levels -127 to 127. */
function palette() {
  const [page, positive, negative] = ["--page", "--positive", "--negative"].map(channels);
  const reach = facts.scales[index()] / limit() / 127;
  return Array.from({ length: 255 }, (_, i) => {
    const end = i < 127 ? negative : positive;
    const share = Math.abs(i - 127) * reach;
    return page.map((from, k) => Math.round(from + (end[k] - from) * share));
  });
}

// ---- rows: those in sight are in the document, the others are not ----

const area = $("text");
const rows = new Map(); // the element of each row in sight
let starts = [0, N]; // where the rows begin, and N
let columns = 0; // of a row
let rowHeight = 0;
// Rows stand in stripes side by side if they are short, like the columns of a newspaper: a block of
// as many as fit on a screen, then the next block under it.
let stripes = 1;
let blockRows = 1; // of a stripe in a block
let stripeWidth = 0;
const GAP = 3; // columns between stripes

const rem = () => parseFloat(getComputedStyle(document.documentElement).fontSize);
const size = (name) => rem() * parseFloat(styled(name));

function heightWith(count) {
  const under = count ? count * size("--guess-height") + 0.6 * rem() : 0.1 * rem();
  return size("--line-height") + under;
}

/** The height for the text below the bar. */
const room = () => innerHeight - $("bar").offsetHeight - 2 * rem();

/** The most guesses with which more than six rows fit on the screen. */
function roomy() {
  const fits = [...$("guessing").options].map(({ value }) => Number(value));
  return fits.find((count) => room() / heightWith(count) > 7) ?? 0;
}

/** The most stripes in which no more than one line in ten has to be broken. */
function stripesFor(most) {
  const ends = [...lineStarts.slice(1), N];
  const width = (count) => Math.floor((most + GAP) / count) - GAP;
  let count = 1;
  const broken = (wide) => ends.filter((end, i) => end - lineStarts[i] > wide).length;
  while (width(count + 1) >= 8 && broken(width(count + 1)) * 10 <= ends.length) ++count;
  return count;
}

/** Where the rows begin, and N. */
function rowsOf(columns) {
  const begins = [];
  for (let n = 0; n < N; ) {
    begins.push(n);
    const end = lineStarts[lines[n] + 1] ?? N;
    n = Math.min(n + columns, end);
  }
  return [...begins, N];
}

function layOut() {
  const most = Math.max(8, Math.floor(area.clientWidth / size("--advance")));
  rowHeight = heightWith(chosen.guesses);
  blockRows = Math.max(4, Math.floor(room() / rowHeight));
  stripes = stripesFor(most) + 1;
  do {
    --stripes; // until none is empty
    columns = Math.floor((most + GAP) / stripes) - GAP;
    starts = rowsOf(columns);
  } while (stripes > 1 && starts.length - 1 <= (stripes - 1) * blockRows);
  const count = starts.length - 1;
  if (stripes === 1) blockRows = count;
  stripeWidth = (columns + GAP) * size("--advance");
  document.documentElement.style.setProperty("--bar-height", `${$("bar").offsetHeight}px`);
  area.style.height = `${place(count - 1).block + blockRows * rowHeight}px`;
  area.style.setProperty("--row-height", `${rowHeight}px`);
  for (const row of rows.values()) row.remove();
  rows.clear();
}

/** Where row r stands, in pixels; and where its block begins. */
function place(r) {
  const inBlock = r % (stripes * blockRows);
  const blockHeight = blockRows * rowHeight + (stripes > 1 ? 1.5 * rem() : 0);
  const block = Math.floor(r / (stripes * blockRows)) * blockHeight;
  return {
    block,
    top: block + (inBlock % blockRows) * rowHeight,
    left: Math.floor(inBlock / blockRows) * stripeWidth,
  };
}

function glyph(i, className) {
  const [shown, , look] = facts.glyphs[i];
  return element("span", look === "plain" ? className : `${className} ${look}`, shown);
}

/** What would have removed the error of character n, an index in division.removed; else 255. */
const oracleOf = (n) => (oracles && n > 0 ? oracles[n - 1] : NONE);
const isMarked = (n) => oracleOf(n) === (chosen.errors ?? -1);

function column(n) {
  const made = element("span", "char", glyph(text[n], "glyph"));
  made.dataset.n = n;
  made.classList.toggle("missed", isMarked(n));
  for (let k = 0; k < chosen.guesses; ++k) {
    const guess = glyph(guesses[n * K + k], "guess");
    guess.style.setProperty("--share", (shares[n * K + k] / 65535).toFixed(3));
    if (came[n] === k) guess.classList.add("came");
    made.append(guess);
  }
  return made;
}

function makeRow(r) {
  const made = element("div", "row");
  const { top, left } = place(r);
  made.style.top = `${top}px`;
  made.style.left = `${left}px`;
  for (let n = starts[r]; n < starts[r + 1]; ++n) made.append(column(n));
  return made;
}

/** The first row in sight, and the one after the last; of stripes, those of whole blocks. */
function inSight() {
  const top = -area.getBoundingClientRect().top;
  const count = starts.length - 1;
  if (stripes > 1) {
    const blockHeight = place(stripes * blockRows).block;
    const all = stripes * blockRows;
    return [
      clamp(Math.floor(top / blockHeight) * all, 0, count - 1),
      clamp(Math.ceil((top + innerHeight) / blockHeight) * all, 1, count),
    ];
  }
  return [
    clamp(Math.floor(top / rowHeight), 0, count - 1),
    clamp(Math.ceil((top + innerHeight) / rowHeight), 1, count),
  ];
}

/** Puts the rows from first to end into the document, coloured, and takes the others out. */
function fill(first, end) {
  for (const [r, row] of rows) {
    if (r >= first && r < end) continue;
    row.remove();
    rows.delete(r);
  }
  const least = Math.min(...rows.keys());
  const [above, below] = [[], []]; // of those that are there: the document keeps the text's order
  for (let r = first; r < end; ++r) {
    if (rows.has(r)) continue;
    const row = makeRow(r);
    rows.set(r, row);
    (r < least ? above : below).push(row);
  }
  paint([...above, ...below]);
  area.prepend(...above);
  area.append(...below);
}

function scrolled() {
  const [first, end] = inSight();
  fill(Math.max(first - 2, 0), Math.min(end + 2, starts.length - 1));
  markMap(first, end);
}

let colours = [];

function paint(some) {
  const offset = index() * N;
  for (const row of some) {
    for (const char of row.children) {
      const level = levels[offset + Number(char.dataset.n)];
      char.firstChild.style.backgroundColor = colours[level + 127];
    }
  }
}

// ---- the overview: a pixel for each character ----

const map = $("map").querySelector("canvas");

function drawMap(rgb) {
  const count = starts.length - 1;
  map.width = columns;
  map.height = count;
  const scale = Math.min(4, (innerHeight - $("bar").offsetHeight - 3 * rem()) / count);
  map.style.width = "100%";
  map.style.height = `${count * scale}px`;
  const context = map.getContext("2d");
  const image = context.createImageData(columns, count);
  const pixels = new Uint32Array(image.data.buffer); // from the low byte: red, green, blue, alpha
  const pack = ([red, green, blue]) => (255 << 24) | (blue << 16) | (green << 8) | red;
  const [packed, mark] = [rgb.map(pack), pack(channels("--ink"))];
  const offset = index() * N;
  for (let r = 0; r < count; ++r) {
    for (let n = starts[r]; n < starts[r + 1]; ++n) {
      pixels[r * columns + n - starts[r]] = isMarked(n) ? mark : packed[levels[offset + n] + 127];
    }
  }
  context.putImageData(image, 0, 0);
}

function markMap(first, end) {
  const scale = map.clientHeight / (starts.length - 1);
  const mark = $("map").querySelector("div");
  mark.style.top = `${first * scale}px`;
  mark.style.height = `${Math.max((end - first) * scale, 4)}px`;
}

function jump(event) {
  if (event.buttons !== 1) return;
  const box = map.getBoundingClientRect();
  const row = ((event.clientY - box.top) / box.height) * (starts.length - 1);
  const top = area.getBoundingClientRect().top + scrollY;
  scrollTo({ top: top + place(Math.floor(row)).top - innerHeight / 2 });
}

// ---- what cells follow ----

const meters = facts.features.map((feature) => {
  const value = element("output");
  const fillBar = element("span");
  const ticks = [-1, 1].map((sign) => {
    const tick = element("span", "tick");
    tick.style.left = `${50 + 50 * sign * feature.chance}%`;
    return tick;
  });
  const best = element("div", "best");
  for (const c of feature.best) {
    const button = element("button", "", `${label(c)} ${signed(feature.r[c])}`);
    button.type = "button";
    button.dataset.index = c;
    button.addEventListener("click", () => choose(cellOf(c)));
    best.append(button);
  }
  if (!feature.best.length) best.append(`no cell beyond chance, ${feature.chance.toFixed(2)}`);
  const box = element(
    "div",
    "feature",
    element("h2", "", feature.name, value),
    element("div", "track", fillBar, ...ticks),
    best,
  );
  box.title = `${feature.name}: ${feature.about}. Chance level: ${feature.chance.toFixed(2)}`;
  $("ranking").append(box);
  return { feature, value, fillBar, buttons: best.querySelectorAll("button") };
});
if (facts.constant.length) {
  $("constant").textContent = `The same all over this text: ${facts.constant.join(", ")}.`;
}

function showMeters() {
  for (const { feature, value, fillBar, buttons } of meters) {
    const r = feature.r[index()];
    value.textContent = `r ${signed(r)}`;
    fillBar.className = `fill ${r < 0 ? "down" : "up"}`;
    fillBar.style.left = `${50 + 50 * Math.min(r, 0)}%`;
    fillBar.style.width = `${50 * Math.abs(r)}%`;
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.index) === index()));
    }
  }
}

/** How far a cell's r is beyond chance. */
const beyond = (feature, c) => Math.abs(feature.r[c]) - feature.chance;

/** The feature that cell c follows most clearly, if any. */
function clearest(c) {
  const followed = facts.features.filter((feature) => beyond(feature, c) > 0);
  return followed.sort((a, b) => beyond(b, c) - beyond(a, c))[0];
}

/** The cell that a page opens on, and why. */
function opening() {
  const followed = facts.features.filter((feature) => feature.memory && feature.best.length);
  const most = followed.sort((a, b) => beyond(b, b.best[0]) - beyond(a, a.best[0]))[0];
  if (!most) return { c: 0, why: "No cell follows a feature that takes memory beyond chance, so the page opened on the first." };
  return { c: most.best[0], why: "Of all cells it stands out most beyond chance, so the page opened on it." };
}
const opened = opening();

function showWhy() {
  const c = index();
  const feature = clearest(c);
  const follows = feature
    ? `follows “${feature.name}”: r ${signed(feature.r[c])}, chance ${feature.chance.toFixed(2)}.`
    : "follows none of the features beyond chance.";
  $("why").textContent = `Cell ${label(c)} ${follows}${c === opened.c ? ` ${opened.why}` : ""}`;
}

// ---- gates, and where the loss comes from ----

function drawn(tag, attributes) {
  const made = document.createElementNS($("gates").firstElementChild.namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

let plotted = null; // the layer whose gates are drawn
const plots = $("gates").querySelector("div");

function showGates() {
  const gates = facts.gates[chosen.layer];
  if (plotted !== chosen.layer) {
    plotted = chosen.layer;
    plots.replaceChildren(
      ...gates.map(({ gate, left, right }) => {
        const plot = drawn("svg", { viewBox: "-2 -2 104 104", role: "img" });
        plot.append(drawn("path", { class: "frame", d: "M0 0V100H100Z" }));
        left.forEach((share, cell) => {
          const at = { cx: 100 * right[cell], cy: 100 - 100 * share, r: 2, "data-cell": cell };
          plot.append(drawn("circle", at));
        });
        const caption = element("figcaption", "", `${gate} gate`);
        const figure = element("figure", "gate", plot, caption);
        figure.title = `${gate} gate, layer ${facts.layers[chosen.layer]}`;
        return figure;
      }),
    );
  }
  for (const plot of plots.querySelectorAll("svg")) {
    plot.querySelector(".chosen")?.classList.remove("chosen");
    const own = plot.querySelector(`[data-cell="${chosen.cell}"]`);
    own.classList.add("chosen");
    plot.append(own); // above the others
    const [right, left] = [own.getAttribute("cx"), 100 - own.getAttribute("cy")];
    const said = `cell ${chosen.cell}: open ${Math.round(right)} %, closed ${Math.round(left)} %`;
    plot.setAttribute("aria-label", said);
    plot.parentNode.lastChild.title = said;
  }
}
$("saturation").hidden = !facts.gates[0].length;
$("gated").textContent = `${facts.gated < N ? "the first " : "all "}${facts.gated} ${facts.unit}s`;
plots.addEventListener("click", (event) => {
  const point = event.target.closest("circle");
  if (point) choose({ cell: Number(point.dataset.cell) });
});

for (const { name, about, count, nats, share } of facts.errors) {
  const bar = element("span", "fill");
  bar.style.width = `${100 * share}%`;
  const cells = [
    name,
    element("span", "track", bar),
    `${(100 * share).toFixed(1)} %`,
    nats.toFixed(2),
    `${count}`,
  ];
  const line = element("tr", "", ...cells.map((cell) => element("td", "", cell)));
  line.title = about;
  $("errors").querySelector("tbody").append(line);
}

// ---- the errors, by what would have removed them ----

$("untold").hidden = Boolean(division);
$("oracles").hidden = !division;

function wholePercent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

/** The lines of one oracle in the table: its numbers, and how many each of its steps removes. */
function oracleLines({ name, about, count, remaining, step, steps }, i) {
  const swatch = element("span", "swatch");
  swatch.style.background = `var(--oracle-${i})`;
  const button = element("button", "", swatch, name);
  button.type = "button";
  button.dataset.oracle = i;
  button.addEventListener("click", () => choose({ errors: chosen.errors === i ? null : i }));
  const share = wholePercent(count / division.errors);
  const cells = [button, `${count}`, share, `${remaining}`];
  const line = element("tr", "", ...cells.map((cell) => element("td", "", cell)));
  line.title = about;
  const told = steps.filter(([, removed]) => removed).map(([value, n]) => `${value} (${n})`);
  if (!told.length) return [line];
  const detail = element("td", "", `${step}: ${told.join(", ")}`);
  detail.colSpan = cells.length;
  return [line, element("tr", "steps", detail)];
}

if (division) {
  const { predicted, errors, contained, removed } = division;
  const share = wholePercent(errors / predicted);
  $("missed").textContent = `${errors} of ${predicted} ${facts.unit}s (${share})`;
  $("contained").hidden = !contained;
  const stack = $("oracles").querySelector(".stack");
  const table = $("oracles").querySelector("table");
  stack.hidden = table.hidden = !errors;
  removed.forEach((oracle, i) => {
    table.querySelector("tbody").append(...oracleLines(oracle, i));
    if (!oracle.count) return;
    const part = element("span");
    part.style.width = `${(100 * oracle.count) / errors}%`;
    part.style.background = `var(--oracle-${i})`;
    part.title = `${oracle.name}: ${wholePercent(oracle.count / errors)}`;
    stack.append(part);
  });
  const told = [...stack.children].map((part) => part.title);
  stack.setAttribute("aria-label", `Shares of the errors: ${told.join(", ")}`);
}

function markErrors() {
  for (const row of rows.values()) {
    for (const char of row.children) {
      char.classList.toggle("missed", isMarked(Number(char.dataset.n)));
    }
  }
  [...$("oracles").querySelectorAll("button")].forEach((button, i) => {
    button.setAttribute("aria-pressed", String(i === chosen.errors));
  });
}

// ---- what stands at a character ----

const tip = $("tip");
let pointed = null; // the column under the pointer

function quoted(i) {
  return element("bdi", "", `“${facts.glyphs[i][SHOWN]}”`);
}

function percent(share) {
  return share < 0.00005 ? "< 0.01 %" : `${(100 * share).toFixed(2)} %`;
}

/** That the model missed character n, if it did. */
function missed(n) {
  if (oracleOf(n) === NONE) return [];
  const { name } = division.removed[oracleOf(n)];
  const found = `an error (${percent(Math.exp(-losses[n - 1]))}): ${name}`;
  return [element("p", "", found)];
}

function describe(n) {
  const place = `line ${lines[n] + 1}, column ${n - lineStarts[lines[n]] + 1}`;
  const value = element("b", "", signed(activation(n)));
  const paragraphs = [
    element("p", "", quoted(text[n]), ` ${facts.glyphs[text[n]][NAME]}`),
    element("p", "", `${facts.unit} ${n + 1} of ${N}, ${place}`),
    ...missed(n),
    element("p", "", `cell ${label(index())}: ${facts.quantity} = `, value),
  ];
  const table = element("table");
  for (let k = 0; k < K; ++k) {
    const guess = facts.glyphs[guesses[n * K + k]];
    const cells = [guess[SHOWN], percent(shares[n * K + k] / 65535), guess[NAME]];
    const line = element("tr", "", ...cells.map((cell) => element("td", "", cell)));
    if (came[n] === k) line.firstChild.classList.add("came");
    table.append(line);
  }
  paragraphs.push(table);
  if (n + 1 < N) {
    const loss = `${losses[n].toFixed(3)} nats, ${(losses[n] / Math.LN2).toFixed(3)} bits`;
    const found = ` came: ${percent(Math.exp(-losses[n]))}, a loss of ${loss}`;
    paragraphs.push(element("p", "", quoted(text[n + 1]), found));
  }
  return paragraphs;
}

function showTip() {
  tip.hidden = pointed === null;
  if (tip.hidden) return;
  tip.replaceChildren(...describe(Number(pointed.dataset.n)));
  const at = pointed.getBoundingClientRect();
  const below = at.bottom + tip.offsetHeight + 8 < innerHeight;
  tip.style.left = `${clamp(at.left, 4, innerWidth - tip.offsetWidth - 4)}px`;
  tip.style.top = `${below ? at.bottom + 6 : Math.max(at.top - tip.offsetHeight - 6, 4)}px`;
}

// ---- choosing ----

function choose(changes) {
  Object.assign(chosen, changes);
  chosen.layer = clamp(chosen.layer, 0, facts.layers.length - 1);
  chosen.cell = clamp(chosen.cell, 0, facts.cells - 1);
  if ("guesses" in changes) rowsAgain();
  if ("errors" in changes) markErrors();
  $("layer").value = String(chosen.layer);
  $("slider").value = $("cell").value = String(chosen.cell);
  $("guessing").value = String(chosen.guesses);
  $("contrast").checked = chosen.contrast;
  recolour();
  showMeters();
  showWhy();
  showGates();
  showTip();
  remember();
}

function recolour() {
  const rgb = palette();
  colours = rgb.map((colour) => `rgb(${colour})`);
  paint(rows.values());
  drawMap(rgb);
  const most = limit();
  $("low").textContent = facts.bounded ? signed(-most) : "0";
  $("high").textContent = signed(most);
}

/** Lays out anew, around the same place of the text: for another width, with or without guesses. */
function rowsAgain() {
  const top = area.getBoundingClientRect().top;
  const before = starts[inSight()[0]];
  layOut();
  if (top < 0) {
    const row = starts.findIndex((start) => start > before) - 1;
    scrollBy({ top: area.getBoundingClientRect().top + place(row).top });
  }
  scrolled();
}

let remembering;

/** Puts the choice into the address: a link leads to it. Late, as browsers allow few of these. */
function remember() {
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    const parts = { layer: facts.layers[chosen.layer], cell: chosen.cell };
    if (chosen.guesses !== roomy()) parts.guesses = chosen.guesses || "off";
    if (chosen.contrast) parts.contrast = "full";
    if (chosen.errors !== null) parts.errors = chosen.errors;
    history.replaceState(null, "", `#${new URLSearchParams(parts)}`);
  }, 250);
}

/** The choice that the address holds, or the cell that stands out most against chance. */
function recalled() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const offered = [...$("guessing").options].map(({ value }) => value);
  const said = asked.get("guesses") === "off" ? "0" : asked.get("guesses");
  const guesses = offered.includes(said) ? Number(said) : roomy();
  const contrast = asked.get("contrast") === "full";
  const layer = facts.layers.indexOf(Number(asked.get("layer") ?? NaN));
  const cell = Number(asked.get("cell") ?? NaN);
  const errors = (division?.removed ?? []).findIndex((_, i) => asked.get("errors") === String(i));
  const others = { guesses, contrast, errors: errors < 0 ? null : errors };
  if (layer >= 0 && Number.isInteger(cell)) return { ...others, layer, cell };
  return { ...others, ...cellOf(opened.c) };
}

let unfolded = null; // how many guesses there were before they were folded

function fold() {
  const guesses = chosen.guesses ? 0 : unfolded || roomy() || K;
  unfolded = chosen.guesses;
  choose({ guesses });
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("select, [type=number]")) return; // they have keys of their own
  const by = event.shiftKey ? 10 : 1;
  if (event.key === "ArrowLeft") choose({ cell: chosen.cell - by });
  else if (event.key === "ArrowRight") choose({ cell: chosen.cell + by });
  else if (event.key === "g") fold();
  else if (event.key === "c") choose({ contrast: !chosen.contrast });
  else if (/^[0-9]$/.test(event.key) && facts.layers.includes(Number(event.key))) {
    choose({ layer: facts.layers.indexOf(Number(event.key)) });
  } else return;
  event.preventDefault();
}

facts.layers.forEach((layer, i) => $("layer").append(new Option(String(layer), String(i))));
for (const count of new Set([K, Math.min(3, K), Math.min(1, K), 0])) {
  $("guessing").append(new Option(count ? String(count) : "none", String(count)));
}
$("slider").max = $("cell").max = String(facts.cells - 1);
$("quantity").textContent = facts.quantity;
$("legend").classList.toggle("positive", !facts.bounded);

$("bar").addEventListener("submit", (event) => event.preventDefault());
$("layer").addEventListener("change", (event) => choose({ layer: Number(event.target.value) }));
$("slider").addEventListener("input", (event) => choose({ cell: Number(event.target.value) }));
$("cell").addEventListener("change", (event) => choose({ cell: Number(event.target.value) | 0 }));
$("previous").addEventListener("click", () => choose({ cell: chosen.cell - 1 }));
$("next").addEventListener("click", () => choose({ cell: chosen.cell + 1 }));
$("guessing").addEventListener("change", (event) => choose({ guesses: Number(event.target.value) }));
$("contrast").addEventListener("change", (event) => choose({ contrast: event.target.checked }));
$("map").addEventListener("pointerdown", jump);
$("map").addEventListener("pointermove", jump);
area.addEventListener("pointerover", (event) => {
  pointed = event.target.closest(".char");
  showTip();
});
area.addEventListener("pointerleave", () => {
  pointed = null;
  showTip();
});
document.addEventListener("keydown", pressed);
addEventListener("scroll", scrolled, { passive: true });
addEventListener("resize", () => {
  rowsAgain();
  recolour();
});
addEventListener("hashchange", () => choose(recalled()));
addEventListener("beforeprint", () => fill(0, starts.length - 1));
addEventListener("afterprint", scrolled);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);

if (innerWidth < 62 * rem()) {
  for (const part of $("side").children) part.open = false;
}
choose(recalled());
