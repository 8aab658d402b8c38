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

// layer: an index of facts.layers
const chosen = { layer: 0, cell: 0, guesses: true, contrast: false };
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
let columns = 0;
let rowHeight = 0;

const rem = () => parseFloat(getComputedStyle(document.documentElement).fontSize);

function layOut() {
  const size = (name) => rem() * parseFloat(styled(name));
  columns = Math.max(8, Math.floor(area.clientWidth / size("--advance")));
  const under = chosen.guesses ? K * size("--guess-height") + 0.6 * rem() : 0.1 * rem();
  rowHeight = size("--line-height") + under;
  starts = [];
  for (let n = 0; n < N; ) {
    starts.push(n);
    const end = lineStarts[lines[n] + 1] ?? N;
    n = Math.min(n + columns, end);
  }
  starts.push(N);
  document.documentElement.style.setProperty("--bar-height", `${$("bar").offsetHeight}px`);
  area.style.height = `${(starts.length - 1) * rowHeight}px`;
  area.style.setProperty("--row-height", `${rowHeight}px`);
  for (const row of rows.values()) row.remove();
  rows.clear();
}

function glyph(i, className) {
  const [shown, , look] = facts.glyphs[i];
  return element("span", look === "plain" ? className : `${className} ${look}`, shown);
}

function column(n) {
  const made = element("span", "char", glyph(text[n], "glyph"));
  made.dataset.n = n;
  if (!chosen.guesses) return made;
  for (let k = 0; k < K; ++k) {
    const guess = glyph(guesses[n * K + k], "guess");
    guess.style.setProperty("--share", (shares[n * K + k] / 65535).toFixed(3));
    if (came[n] === k) guess.classList.add("came");
    made.append(guess);
  }
  return made;
}

function makeRow(r) {
  const made = element("div", "row");
  made.style.top = `${r * rowHeight}px`;
  for (let n = starts[r]; n < starts[r + 1]; ++n) made.append(column(n));
  return made;
}

/** The first row in sight, and the one after the last. */
function inSight() {
  const top = -area.getBoundingClientRect().top;
  const count = starts.length - 1;
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
  const packed = rgb.map(([red, green, blue]) => (255 << 24) | (blue << 16) | (green << 8) | red);
  const offset = index() * N;
  for (let r = 0; r < count; ++r) {
    for (let n = starts[r]; n < starts[r + 1]; ++n) {
      pixels[r * columns + n - starts[r]] = packed[levels[offset + n] + 127];
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
  scrollTo({ top: top + row * rowHeight - innerHeight / 2 });
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

// ---- what stands at a character ----

const tip = $("tip");
let pointed = null; // the column under the pointer

function quoted(i) {
  return element("bdi", "", `“${facts.glyphs[i][SHOWN]}”`);
}

function percent(share) {
  return share < 0.00005 ? "< 0.01 %" : `${(100 * share).toFixed(2)} %`;
}

function describe(n) {
  const place = `line ${lines[n] + 1}, column ${n - lineStarts[lines[n]] + 1}`;
  const value = element("b", "", signed(activation(n)));
  const paragraphs = [
    element("p", "", quoted(text[n]), ` ${facts.glyphs[text[n]][NAME]}`),
    element("p", "", `${facts.unit} ${n + 1} of ${N}, ${place}`),
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
  $("layer").value = String(chosen.layer);
  $("slider").value = $("cell").value = String(chosen.cell);
  $("guessing").checked = chosen.guesses;
  $("contrast").checked = chosen.contrast;
  recolour();
  showMeters();
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
    scrollBy({ top: area.getBoundingClientRect().top + row * rowHeight });
  }
  scrolled();
}

let remembering;

/** Puts the choice into the address: a link leads to it. Late, as browsers allow few of these. */
function remember() {
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    const parts = { layer: facts.layers[chosen.layer], cell: chosen.cell };
    if (!chosen.guesses) parts.guesses = "off";
    if (chosen.contrast) parts.contrast = "full";
    history.replaceState(null, "", `#${new URLSearchParams(parts)}`);
  }, 250);
}

/** The choice that the address holds, or the cell that stands out most against chance. */
function recalled() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const guesses = asked.get("guesses") !== "off";
  const contrast = asked.get("contrast") === "full";
  const layer = facts.layers.indexOf(Number(asked.get("layer") ?? NaN));
  const cell = Number(asked.get("cell") ?? NaN);
  if (layer >= 0 && Number.isInteger(cell)) return { guesses, contrast, layer, cell };
  const lead = (feature) => Math.abs(feature.r[feature.best[0]]) - feature.chance;
  const followed = facts.features.filter((feature) => feature.memory && feature.best.length);
  const best = followed.sort((a, b) => lead(b) - lead(a))[0]?.best[0] ?? 0;
  return { guesses, contrast, ...cellOf(best) };
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("select, [type=number]")) return; // they have keys of their own
  const by = event.shiftKey ? 10 : 1;
  if (event.key === "ArrowLeft") choose({ cell: chosen.cell - by });
  else if (event.key === "ArrowRight") choose({ cell: chosen.cell + by });
  else if (event.key === "g") choose({ guesses: !chosen.guesses });
  else if (event.key === "c") choose({ contrast: !chosen.contrast });
  else if (/^[0-9]$/.test(event.key) && facts.layers.includes(Number(event.key))) {
    choose({ layer: facts.layers.indexOf(Number(event.key)) });
  } else return;
  event.preventDefault();
}

facts.layers.forEach((layer, i) => $("layer").append(new Option(String(layer), String(i))));
$("slider").max = $("cell").max = String(facts.cells - 1);
$("quantity").textContent = facts.quantity;
$("legend").classList.toggle("positive", !facts.bounded);

$("bar").addEventListener("submit", (event) => event.preventDefault());
$("layer").addEventListener("change", (event) => choose({ layer: Number(event.target.value) }));
$("slider").addEventListener("input", (event) => choose({ cell: Number(event.target.value) }));
$("cell").addEventListener("change", (event) => choose({ cell: Number(event.target.value) | 0 }));
$("previous").addEventListener("click", () => choose({ cell: chosen.cell - 1 }));
$("next").addEventListener("click", () => choose({ cell: chosen.cell + 1 }));
$("guessing").addEventListener("change", (event) => choose({ guesses: event.target.checked }));
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

if (innerWidth < 62 * rem()) $("features").open = false;
choose(recalled());
