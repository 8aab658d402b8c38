"use strict";

// Text reaches the document as text nodes only (textContent, append): nothing of it is ever parsed.

const $ = (id) => document.getElementById(id);
const ALTERNATIVES = 8;
const NAMES = { 9: "tab", 10: "line feed", 13: "carriage return", 32: "space", 160: "no-break space" };
const LOOKS = { 9: "→", 10: "↵", 13: "␍", 32: "·", 160: "⍽" };

let model = null; // what /v1/model tells
let drawing = null; // the AbortController of the text that is drawn
let prime = []; // the symbols before the first that was drawn
let drawn = []; // {symbol, probability, alternatives} of each character, in order
let spans = []; // their elements
let decoder = null; // of a model of bytes: what has come of a character

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// ---- symbols: code points, or bytes of UTF-8 ----

const inBytes = () => model.vocabulary.kind === "bytes";
const symbolsOf = (text) =>
  inBytes() ? [...new TextEncoder().encode(text)] : [...text].map((c) => c.codePointAt(0));
const isLone = (symbol) => symbol >= 0xd800 && symbol < 0xe000;
const textOf = (symbols) =>
  inBytes()
    ? new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(symbols))
    : symbols.map((s) => String.fromCodePoint(s)).join("");
const hex = (symbol) => symbol.toString(16).padStart(2, "0");
const isPlain = (symbol) => symbol > 32 && symbol !== 127 && !(symbol > 127 && symbol < 161);

/** Whether its element would have no width, so that nobody could see or click it. */
const isUnseen = (symbol) =>
  ![9, 10, 32, 160].includes(symbol) && !isPlain(symbol) && !(inBytes() && symbol > 127);

/** How a single symbol is shown where it stands alone. */
function look(symbol) {
  if (LOOKS[symbol]) return LOOKS[symbol];
  if (inBytes() && symbol > 127) return hex(symbol);
  return isPlain(symbol) && !isLone(symbol) ? String.fromCodePoint(symbol) : hex(symbol);
}

/** What its look does not tell; nothing for ASCII that is visible. */
function nameOf(symbol) {
  if (inBytes() && symbol > 127) return `byte 0x${hex(symbol)}`;
  if (NAMES[symbol] || (symbol > 32 && symbol < 127)) return NAMES[symbol] ?? "";
  return `U+${symbol.toString(16).toUpperCase().padStart(4, "0")}`;
}

/** A probability in percent, with two digits that count. */
function percent(share) {
  const value = 100 * share;
  if (value >= 99.95) return "100 %";
  return value >= 10 ? `${value.toFixed(1)} %` : value >= 0.1 ? `${value.toFixed(2)} %` : "< 0.1 %";
}

// ---- the text ----

/** Shows the symbols of a prime, to which nothing can be chosen. */
function showPrime() {
  $("text").replaceChildren(textOf(prime));
  spans = [];
  drawn = [];
  decoder = inBytes() ? [] : null;
}

/** The text of a drawn symbol; of bytes, an earlier one of the same character is emptied. */
function partOf(symbol, made) {
  if (!inBytes()) return isLone(symbol) ? hex(symbol) : String.fromCodePoint(symbol);
  if (symbol < 0x80) {
    decoder = [];
    return String.fromCharCode(symbol);
  }
  decoder.push([symbol, made]);
  if (decoder.length > 4) decoder.shift();
  for (let from = 0; from < decoder.length; ++from) {
    const rest = decoder.slice(from);
    let whole;
    try {
      whole = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(
        new Uint8Array(rest.map(([s]) => s)),
      );
    } catch {
      continue;
    }
    for (const [, other] of rest.slice(0, -1)) other.textContent = "";
    decoder = [];
    return whole;
  }
  made.classList.add("hex");
  return hex(symbol);
}

function append(symbols) {
  const made = document.createDocumentFragment();
  for (const symbol of symbols) {
    const span = element("span", "char");
    const part = partOf(symbol.symbol, span);
    span.setAttribute("role", "button");
    if (symbol.symbol === 10) span.classList.add("newline");
    else if (isUnseen(symbol.symbol)) {
      span.classList.add("named");
      span.dataset.look = look(symbol.symbol);
    }
    span.append(part);
    span.style.setProperty("--share", symbol.probability.toFixed(3));
    span.dataset.n = drawn.length;
    drawn.push(symbol);
    spans.push(span);
    made.append(span);
  }
  $("text").append(made);
  if (symbols.length && !$("text").querySelector("[tabindex='0']")) spans[0].tabIndex = 0;
}

/** Drops the symbols from n on. Bytes of a character that lacks its end then are shown anew. */
function cut(n) {
  const isPart = (span) => !span.textContent || span.classList.contains("hex");
  let from = n;
  while (inBytes() && from > Math.max(0, n - 3) && isPart(spans[from - 1])) --from;
  const kept = drawn.slice(from, n);
  for (const span of spans.splice(from)) span.remove();
  drawn.splice(from);
  decoder = inBytes() ? [] : null;
  append(kept);
}

/** Shows how it goes; a screen reader says only how it ended, not each block. */
function tell(text, isError = false, isOver = true) {
  $("status").textContent = text;
  if (isOver) $("said").textContent = text;
  $("status").classList.toggle("error", isError);
}

// ---- requests ----

const headers = () => {
  const token = $("token").value.trim();
  return token ? { authorization: `Bearer ${token}` } : {};
};

/** What an answer that is no success says. */
async function complaint(answer) {
  if (answer.status === 401) {
    $("token-label").hidden = false;
    return $("token").value ? "this is not the server’s token" : "the server takes a token: put it in above";
  }
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answers ${answer.status}`;
  }
}

async function loadModel() {
  const answer = await fetch("v1/model", { headers: headers() });
  if (!answer.ok) throw new Error(await complaint(answer));
  model = await answer.json();
  const layers = `${model.num_layers} layer${model.num_layers > 1 ? "s" : ""}`;
  const shape = `${model.cell}, ${layers} of ${model.hidden_size}`;
  const facts = {
    model: `${shape}, ${model.parameters.toLocaleString("en")} parameters, on ${model.device}`,
    vocabulary: inBytes() ? "the 256 bytes" : `${model.vocabulary.size} characters`,
  };
  $("title").textContent = document.title = model.name;
  $("about").replaceChildren(
    ...Object.entries(facts).flatMap(([a, b]) => [element("dt", "", a), element("dd", "", b)]),
  );
  $("version").textContent = `· charrnn-fast ${model.version}`;
  $("length").max = model.limits.length;
  if (Number($("length").value) > model.limits.length) $("length").value = model.limits.length;
  $("top_k").max = model.vocabulary.size;
}

/** The events of an answer: [name, data], as they come. */
async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    buffer += value;
    const blocks = buffer.split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      if (!block.startsWith("event:")) continue; // a comment, sent while the request waits
      const [event, data] = block.split("\n").map((line) => line.slice(line.indexOf(":") + 2));
      yield [event, JSON.parse(data)];
    }
  }
}

const optional = (id) => ($(id).value.trim() === "" ? null : Number($(id).value));

/** Draws `length` symbols behind those that there are. */
async function draw(length, seed) {
  drawing?.abort();
  const mine = (drawing = new AbortController());
  closeChoices(false);
  $("stop").disabled = false;
  $("text").classList.add("drawing");
  $("text").setAttribute("aria-busy", "true");
  tell("");
  const begin = performance.now();
  const before = drawn.length;
  const symbols = [...prime, ...drawn.map((d) => d.symbol)];
  const all = symbols.slice(Math.max(0, symbols.length - model.limits.prime));
  try {
    const body = {
      length,
      prime: inBytes() ? all : textOf(all),
      temperature: Number($("temperature").value),
      top_k: optional("top_k"),
      top_p: optional("top_p"),
      alternatives: Math.min(ALTERNATIVES, model.vocabulary.size),
      stream: true,
    };
    // As text: JSON has 64 bits of a seed, JavaScript's numbers have 53.
    const text = JSON.stringify(body).replace(/}$/, `,"seed":${seed || "null"}}`);
    const answer = await fetch("v1/sample", {
      method: "POST",
      headers: { "content-type": "application/json", ...headers() },
      body: text,
      signal: mine.signal,
    });
    if (!answer.ok) throw new Error(await complaint(answer));
    let over = false;
    for await (const [event, data] of eventsOf(answer)) {
      if (mine !== drawing) return;
      if (event === "text") append(data.symbols ?? []);
      if (event === "error") throw new Error(data.error.message);
      if (event === "start" && !seed) seed = data.seeds[0];
      over ||= event === "done";
      const seconds = (performance.now() - begin) / 1000;
      const count = drawn.length - before;
      const rate = over && seconds > 0 ? `, ${Math.round(count / seconds).toLocaleString("en")} a second` : "";
      const unit = inBytes() ? "bytes" : "characters";
      tell(`${count.toLocaleString("en")} ${unit} drawn${rate}; seed ${seed}`, false, over);
    }
    if (!over) throw new Error("the connection broke");
  } catch (error) {
    if (error.name === "AbortError") {
      if (mine === drawing) tell(`stopped after ${drawn.length - before}; seed ${seed || "unknown"}`);
    } else if (mine === drawing) {
      tell(error.message, true);
    }
  } finally {
    if (mine === drawing) {
      drawing = null;
      $("stop").disabled = true;
      $("text").classList.remove("drawing");
      $("text").setAttribute("aria-busy", "false");
    }
  }
}

/** Whether the fields are; the first that is not says why. */
function valid() {
  if (!$("bar").reportValidity()) return false;
  const seed = $("seed").value.trim();
  if (/^\d*$/.test(seed)) return true;
  tell(`seed must be an integer from 0, or empty for a random one; got ${seed}`, true);
  $("seed").focus();
  return false;
}

const seedGiven = () => $("seed").value.trim().replace(/^0+(?=\d)/, "");

async function begin(event) {
  event.preventDefault();
  if (!valid()) return;
  try {
    if (model === null) await loadModel();
  } catch (error) {
    tell(error.message, true);
    return;
  }
  prime = symbolsOf($("prime").value);
  if (prime.length > model.limits.prime) {
    tell(`the prime must have at most ${model.limits.prime} characters, got ${prime.length}`, true);
    return;
  }
  showPrime();
  await draw(Number($("length").value), seedGiven());
}

// ---- what else was likely ----

let chosen = -1; // the character whose alternatives are shown

function closeChoices(focus) {
  if (chosen < 0) return;
  $("choices").hidden = true;
  spans[chosen]?.classList.remove("chosen");
  if (focus) spans[chosen]?.focus();
  chosen = -1;
}

function openChoices(n) {
  closeChoices(false);
  chosen = n;
  const { symbol, probability, alternatives } = drawn[n];
  const list = [...alternatives];
  if (!list.some(([other]) => other === symbol)) list.push([symbol, probability]);
  const choices = list.map(([other, share]) => {
    const made = element(
      "button",
      other === symbol ? "choice came" : "choice",
      element("span", "shown", look(other)),
      element("span", "name", nameOf(other)),
      element("span", "share", percent(share)),
    );
    made.type = "button";
    made.style.setProperty("--share", share.toFixed(3));
    const what = other === symbol ? ", which was drawn" : "";
    made.setAttribute("aria-label", `${look(other)} ${nameOf(other)}, ${percent(share)}${what}`);
    made.addEventListener("click", () => goOn(n, other, share, alternatives));
    return made;
  });
  const about = element("p", "", "Go on from here with");
  $("choices").replaceChildren(about, ...choices);
  $("choices").hidden = false;
  spans[n].classList.add("chosen");
  place(spans[n]);
  (choices.find((c) => c.classList.contains("came")) ?? choices[0]).focus({ preventScroll: true });
}

/** Puts the choices below a character, or above where there is no room. */
function place(span) {
  const box = span.getBoundingClientRect();
  const size = $("choices").getBoundingClientRect();
  const wide = document.documentElement.clientWidth;
  const left = Math.min(Math.max(8, box.left - 12), wide - size.width - 8);
  const below = box.bottom + 6;
  const above = box.top - size.height - 6;
  const top = below + size.height > innerHeight && above > 0 ? above : below;
  $("choices").style.left = `${left + scrollX}px`;
  $("choices").style.top = `${top + scrollY}px`;
}

/** Draws on behind character n, which becomes another. */
async function goOn(n, symbol, probability, alternatives) {
  if (!valid()) return;
  const least = Math.min(100, model.limits.length); // also behind the text's last character
  const length = Math.max(Number($("length").value) - n - 1, least);
  cut(n);
  append([{ symbol, probability, alternatives }]);
  $("choices").hidden = true;
  chosen = -1;
  move(n);
  await draw(length, seedGiven());
}

// ---- keys and clicks ----

/** Gives the focus to a character, past bytes without text; it alone is then reached by Tab. */
function move(n, step = 1) {
  if (!spans.length) return;
  const last = spans.length - 1;
  let to = Math.min(Math.max(n, 0), last);
  const isEmpty = (k) => !spans[k].textContent;
  while (isEmpty(to) && to + step >= 0 && to + step <= last) to += step;
  if (isEmpty(to)) return;
  for (const span of $("text").querySelectorAll("[tabindex='0']")) span.removeAttribute("tabindex");
  spans[to].tabIndex = 0;
  spans[to].focus();
}

/** The character in the line above (-1) or below (1), nearest to that of n. */
function inLine(n, direction) {
  const from = spans[n].getBoundingClientRect();
  let best = n;
  let line = null;
  for (let k = n + direction; k >= 0 && k < spans.length; k += direction) {
    const box = spans[k].getBoundingClientRect();
    if (Math.abs(box.top - from.top) < from.height / 2) continue;
    line ??= box.top;
    if (Math.abs(box.top - line) > from.height / 2) break;
    const distance = (m) => Math.abs(spans[m].getBoundingClientRect().left - from.left);
    if (best === n || distance(k) < distance(best)) best = k;
  }
  return best;
}

$("text").addEventListener("click", (event) => {
  const span = event.target.closest(".char");
  if (span) openChoices(Number(span.dataset.n));
});
$("text").addEventListener("keydown", (event) => {
  const span = event.target.closest(".char");
  if (!span) return;
  const n = Number(span.dataset.n);
  const keys = {
    ArrowLeft: () => move(n - 1, -1),
    ArrowRight: () => move(n + 1),
    ArrowUp: () => move(inLine(n, -1)),
    ArrowDown: () => move(inLine(n, 1)),
    Home: () => move(0),
    End: () => move(spans.length - 1, -1),
    Enter: () => openChoices(n),
    " ": () => openChoices(n),
  };
  if (!keys[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  keys[event.key]();
});
$("choices").addEventListener("keydown", (event) => {
  const all = [...$("choices").querySelectorAll("button")];
  const at = all.indexOf(document.activeElement);
  if (event.key === "Escape") closeChoices(true);
  else if (event.key === "ArrowDown") all[(at + 1) % all.length].focus();
  else if (event.key === "ArrowUp") all[(at + all.length - 1) % all.length].focus();
  else return;
  event.preventDefault();
});
document.addEventListener("pointerdown", (event) => {
  if (chosen >= 0 && !event.target.closest("#choices, .char")) closeChoices(false);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented) return;
  if (chosen >= 0) closeChoices(false); // which have lost the focus
  else drawing?.abort();
});
addEventListener("resize", () => closeChoices(false));
$("stop").addEventListener("click", () => drawing?.abort());
$("bar").addEventListener("submit", begin);
$("prime").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("bar").requestSubmit();
});

loadModel().catch((error) => tell(error.message, true));
