// Pictures in, a card for each: sent one by one, a few at a time, so that each has its own answer or its own reason.
// Addresses are relative: a proxy may put the server below any path.

const AT_A_TIME = 3;
const TRIES = 6; // while the server is busy
const SLOW_MILLISECONDS = 1500; // from then on a card says for how long it has waited
const INFERNO = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];

const find = (selector, within = document) => within.querySelector(selector);
const drop = find("#drop"), cards = find("#cards"), choose = find("#choose"), template = find("#card");
const waiting = [];
let model = null, running = 0, dragged = 0;

// What the server serves, and within which limits.

async function introduce() {
  model = await (await fetch("model")).json();
  document.title = `${model.name}: ConvNeXt`;
  find("#model").textContent = model.name;
  find("#about").textContent = `${model.classes.length.toLocaleString("en")} classes, ${model.image_size} px`;
  const { max_bytes: bytes, max_pixels: pixels } = model.limits;
  find("#limits").textContent =
    `${model.formats.join(", ")}. Up to ${megabytes(bytes)} and ${short(pixels / 1e6)} megapixels each.`;
}

const short = (number) => number.toLocaleString("en", { maximumSignificantDigits: 3 });
const megabytes = (bytes) => (bytes >= 1e5 ? `${short(bytes / 2 ** 20)} MB` : `${short(bytes / 1024)} kB`);
const percent = (probability) => `${(100 * probability).toFixed(1)} %`;

function speak(text) {
  find("#spoken").textContent = text;
}

// Where pictures come from: chosen, dropped anywhere on the page, pasted.

choose.addEventListener("change", () => {
  add([...choose.files]);
  choose.value = ""; // so that the same file can be chosen again
});

for (const type of ["dragenter", "dragleave", "dragover", "drop"]) {
  window.addEventListener(type, (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    if (type === "dragenter") dragged += 1;
    if (type === "dragleave") dragged -= 1;
    if (type === "drop") {
      dragged = 0;
      add([...event.dataTransfer.files]);
    }
    drop.classList.toggle("over", dragged > 0);
  });
}

window.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) {
    event.preventDefault();
    add(files);
  } else {
    speak("There is no picture in the clipboard.");
  }
});

// Cards.

function add(files) {
  if (!files.length) return;
  const made = files.map(makeCard);
  cards.prepend(...made.map((card) => card.element));
  waiting.push(...made);
  speak(files.length === 1 ? `${files[0].name} is being looked at.` : `${files.length} pictures are being looked at.`);
  count();
  work();
}

function makeCard(file) {
  const element = template.content.firstElementChild.cloneNode(true);
  const address = URL.createObjectURL(file);
  const card = { element, file, address, stop: new AbortController(), box: null };
  const image = find("img", element);
  find("h2", element).textContent = file.name;
  element.setAttribute("aria-label", file.name);
  find(".remove", element).setAttribute("aria-label", `Remove ${file.name}`);
  find(".remove", element).addEventListener("click", () => remove(card));
  find(".again", element).addEventListener("click", () => {
    show(card, "waiting");
    waiting.push(card);
    work();
  });
  image.addEventListener("load", () => {
    find(".frame", element).style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
    image.hidden = false;
  });
  image.addEventListener("error", () => {
    find(".no-preview", element).hidden = false;
  });
  image.alt = file.name;
  image.src = address;
  return card;
}

function remove(card) {
  const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
  card.stop.abort();
  URL.revokeObjectURL(card.address);
  card.element.remove();
  if (waiting.includes(card)) waiting.splice(waiting.indexOf(card), 1);
  (next ? find(".remove", next) : choose).focus(); // else the keyboard would begin at the top again
  speak(`${card.file.name} is removed.`);
  count();
}

find("#clear").addEventListener("click", () => {
  for (const button of cards.querySelectorAll(".remove")) button.click();
  choose.focus();
});

function count() {
  const number = cards.childElementCount;
  find("#tools").hidden = number === 0;
  drop.classList.toggle("small", number > 0);
  find("#count").textContent = number === 1 ? "1 picture" : `${number} pictures`;
}

function show(card, part) {
  for (const name of ["waiting", "failure", "classes"]) find(`.${name}`, card.element).hidden = name !== part;
  card.element.setAttribute("aria-busy", part === "waiting");
  card.element.classList.toggle("failed", part === "failure");
}

// Questions to the server.

function work() {
  while (running < AT_A_TIME && waiting.length) {
    const card = waiting.shift();
    running += 1;
    show(card, "waiting");
    ask(card).finally(() => {
      running -= 1;
      work();
    });
  }
}

async function ask(card) {
  const start = performance.now(), progress = find(".progress", card.element);
  const timer = setInterval(() => {
    const passed = performance.now() - start;
    if (passed > SLOW_MILLISECONDS) progress.textContent = `Still at work, ${Math.round(passed / 1000)} s`;
  }, 500);
  try {
    const answer = await fetchAnswer(card, progress);
    showAnswer(card, answer, performance.now() - start);
  } catch (error) {
    if (error.name !== "AbortError") showFailure(card, error.message, error.canTryAgain ?? false);
  } finally {
    clearInterval(timer);
    progress.textContent = "Waiting for an answer";
  }
}

async function fetchAnswer(card, progress) {
  if (model && card.file.size > model.limits.max_bytes) {
    throw new Error(`${megabytes(card.file.size)}, no more than ${megabytes(model.limits.max_bytes)} are taken`);
  }
  await card.file.slice(0, 1).arrayBuffer().catch(() => {
    throw new Error("cannot be read: it is a folder, or gone"); // of which fetch would say that the server is not there
  });
  for (let tries = 1; ; tries += 1) {
    const form = new FormData();
    form.append("files", card.file, card.file.name);
    let response, document_;
    try {
      response = await fetch("predict?map=true", { method: "POST", body: form, signal: card.stop.signal });
      document_ = await response.json();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw again("The server cannot be reached.");
    }
    if (response.ok) return document_[0];
    if (response.status === 429 && tries < TRIES) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      progress.textContent = `The server is busy, trying again in ${seconds} s`;
      await pause(seconds * 1000, card.stop.signal);
      continue;
    }
    const reason = document_.answers?.[0]?.error ?? document_.error;
    throw response.status === 429 || response.status >= 500 ? again(reason) : new Error(reason);
  }
}

const again = (reason) => Object.assign(new Error(reason), { canTryAgain: true });

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => reject(new DOMException("", "AbortError")), { once: true });
  });
}

// Answers.

function showFailure(card, reason, canTryAgain) {
  const sentence = reason.charAt(0).toUpperCase() + reason.slice(1);
  find(".reason", card.element).textContent = sentence;
  find(".again", card.element).hidden = !canTryAgain;
  show(card, "failure");
  speak(`${card.file.name}: ${sentence}`);
}

function showAnswer(card, answer, milliseconds) {
  const list = find(".classes", card.element), facts = find(".facts", card.element);
  list.replaceChildren(...answer.top.map(({ label, probability }) => {
    const line = document.createElement("li");
    line.append(piece("span", "label", label), piece("span", "percent", percent(probability)));
    const track = piece("span", "track"), fill = piece("i", "");
    fill.style.width = percent(probability).replace(" ", "");
    track.setAttribute("aria-hidden", "true");
    track.append(fill);
    line.append(track);
    return line;
  }));
  show(card, "classes");
  const image = find("img", card.element), size = answer.map?.size ?? [image.naturalWidth, image.naturalHeight];
  const seconds = milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
  facts.textContent = size[0] ? `${size[0]} × ${size[1]} px, answered in ${seconds}` : `Answered in ${seconds}`;
  facts.hidden = false;
  if (answer.map) showMap(card, answer.map);
  speak(`${card.file.name}: ${answer.label}, ${percent(answer.probability)}`);
}

function piece(name, kind, text = "") {
  const element = document.createElement(name);
  element.className = kind;
  element.textContent = text;
  return element;
}

// The map over the picture: where the network looked, within the part of the picture that it sees.

async function showMap(card, map) {
  const canvas = find(".heat", card.element), outside = find(".outside", card.element);
  const box = find("input[type=checkbox]", card.element), strength = find("input[type=range]", card.element);
  const [left, top, right, bottom] = map.box, [width, height] = map.size;
  for (const { style } of [canvas, outside]) {
    style.left = `${(100 * left) / width}%`;
    style.top = `${(100 * top) / height}%`;
    style.width = `${(100 * (right - left)) / width}%`;
    style.height = `${(100 * (bottom - top)) / height}%`;
  }
  await paint(canvas, map.png);
  const refresh = () => {
    canvas.hidden = outside.hidden = !box.checked;
    canvas.style.opacity = strength.value / 100;
    strength.disabled = !box.checked;
  };
  box.addEventListener("change", refresh);
  strength.addEventListener("input", refresh);
  refresh();
  find(".explain", card.element).hidden = false;
}

async function paint(canvas, png) {
  const image = new Image();
  image.src = `data:image/png;base64,${png}`;
  await image.decode();
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height), { data } = pixels;
  for (let place = 0; place < data.length; place += 4) {
    const value = data[place] / 255, step = Math.min(value * (INFERNO.length - 1), INFERNO.length - 1.001);
    const from = INFERNO[Math.floor(step)], to = INFERNO[Math.floor(step) + 1], part = step % 1;
    for (let channel = 0; channel < 3; channel += 1) {
      data[place + channel] = from[channel] + (to[channel] - from[channel]) * part;
    }
    data[place + 3] = 255 * Math.min(1, 0.25 + value); // where it looked little, the picture shows through
  }
  context.putImageData(pixels, 0, 0);
}

introduce().catch(() => speak("The server cannot be reached."));
