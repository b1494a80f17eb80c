// Runs cascade.onnx on pictures: the network decides here where each is answered.
"use strict";

const byId = (id) => document.getElementById(id);
const MAX_PIXELS = 100e6;
let network, session, shown = [];

function say(text, bad = false) {
  byId("status").textContent = text;
  byId("status").className = bad ? "bad" : "";
}

async function start() {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL(".", location.href).href;
  network = await (await fetch("network.json")).json();
  const started = performance.now();
  session = await ort.InferenceSession.create("cascade.onnx", { executionProviders: ["wasm"] });
  const [height, width] = network.preprocess.size;
  await run(new Float32Array(network.preprocess.mean.length * height * width), limits());  // the first run takes longer
  byId("about").textContent = `${network.answers}, ${network.num_exits} exits, ` +
    `${network.preprocess.size.join(" x ")} pixels. The network was loaded in ${Math.round(performance.now() - started)} ms.`;
  document.body.dataset.ready = "true";
  await offer(network.examples ?? []);
}

async function run(input, thresholds) {
  const shape = [1, network.preprocess.mean.length, ...network.preprocess.size];
  const feeds = {
    [network.input]: new ort.Tensor("float32", input, shape),
    thresholds: new ort.Tensor("float32", Float32Array.from(thresholds), [thresholds.length]),
    temperatures: new ort.Tensor("float32", Float32Array.from(network.temperatures), [network.num_exits]),
  };
  const found = await session.run(feeds), exit = Number(found.exits.data[0]), map = found[`attention_${exit}`];
  return { labels: Array.from(found.labels.data, Number), exit, score: found.scores.data[0], map: map.data, grid: map.dims.slice(1) };
}

const limits = () => network.thresholds.map((t) => (t === "never" ? Infinity : t));
const nameExit = (k) => (k === network.num_exits - 1 ? "the final exit" : `exit ${k}`);
const nameLabel = (i) => network.classes[i] ?? String(i);
const hasPixels = () => network.task === "segmentation";
const pickColour = (i) => `hsl(${(i * 137.5 + 210) % 360} 85% ${45 + 15 * (i % 2)}%)`;

// The classes of an image's pixels, each with its share, the largest first; of a whole image its one class.
function measureAreas(labels) {
  const counts = new Map();
  for (const label of labels) counts.set(label, (counts.get(label) ?? 0) + 1);
  return [...counts].map(([label, count]) => [label, count / labels.length]).sort((a, b) => b[1] - a[1]);
}
const nameAnswer = ({ labels, name }) => {
  if (hasPixels()) return measureAreas(labels).map(([i, share]) => `${nameLabel(i)} ${(100 * share).toFixed(1)} %`).join(", ");
  if (network.task === "embedding") return nameNearest(labels, name);
  if (network.task !== "regression") return nameLabel(labels[0]);
  return labels.map((value, i) => `${network.classes[i] ? `${network.classes[i]} ` : ""}${Number(value.toPrecision(6))}`).join(", ");
};

// The other pictures whose vectors are most like this one, with their cosines; vectors have norm 1.
function nameNearest(vector, name) {
  const cosines = shown.filter((one) => one.name !== name).map((one) => [one.labels.reduce((sum, v, i) => sum + v * vector[i], 0), one.name]);
  const nearest = cosines.sort((a, b) => b[0] - a[0]).slice(0, 3).map(([cosine, other]) => `${other} (${cosine.toFixed(3)})`);
  return nearest.length ? `most like ${nearest.join(", ")}` : "a vector (choose several pictures to compare them)";
}

async function answer(file) {
  if (file.type && !file.type.startsWith("image/")) throw new Error("not a picture");
  const { input, canvas } = await readPicture(file, network.preprocess);
  if (canvas.width * canvas.height > MAX_PIXELS) throw new Error("too large");
  const started = performance.now();
  const found = await run(input, limits());
  return { name: file.name, input, canvas, ms: performance.now() - started, ...found };
}

function giveReason(one) {
  const score = network.score.replace("_", " "), value = one.score.toFixed(3);
  if (one.exit === network.num_exits - 1) return `No earlier exit was sure enough. ${score} ${value}, ${one.ms.toFixed(1)} ms.`;
  return `Its ${score} of ${value} reached ${nameExit(one.exit)}'s threshold of ${limits()[one.exit].toFixed(3)}. ${one.ms.toFixed(1)} ms.`;
}

async function show(one) {
  byId("answer").hidden = false;
  byId("title").textContent = `${one.name}: ${nameAnswer(one)}, answered by ${nameExit(one.exit)}`;
  byId("reason").textContent = giveReason(one);
  const views = [];
  for (const k of network.exits) views.push(await run(one.input, limits().map((_, i) => (i === k ? 0 : Infinity))));
  byId("exits").replaceChildren(...views.map((view, i) => draw(one, network.exits[i], view)));
  if (hasPixels()) byId("key").replaceChildren("Colours: the class of each pixel. ", ...listColours(views));
}

function draw(one, k, view) {
  const figure = document.createElement("figure"), canvas = document.createElement("canvas"), words = document.createElement("figcaption");
  figure.className = k === one.exit ? "answered" : k > one.exit ? "later" : "";
  figure.dataset.exit = k;
  const width = 320, height = Math.round((width * one.canvas.height) / one.canvas.width);
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), [rows, columns] = view.grid, top = Math.max(...view.map);
  context.drawImage(one.canvas, 0, 0, width, height);
  if (hasPixels()) drawClasses(context, view.labels, width, height);
  else for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) {
    context.fillStyle = `rgba(10, 12, 20, ${(0.82 * (1 - view.map[y * columns + x] / top)).toFixed(3)})`;
    const [left, upper] = [Math.round((x * width) / columns), Math.round((y * height) / rows)];
    context.fillRect(left, upper, Math.round(((x + 1) * width) / columns) - left, Math.round(((y + 1) * height) / rows) - upper);
  }
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", hasPixels() ? `The classes that ${nameExit(k)} saw` : `Where ${nameExit(k)} looked`);
  words.textContent = `${nameExit(k)}: ${nameAnswer({ ...view, name: one.name })}, ${network.score.replace("_", " ")} ${view.score.toFixed(3)}`;
  figure.append(canvas, words);
  return figure;
}

// Colours the classes of pixels over a picture; the page lists which colour is which class.
function drawClasses(context, labels, width, height) {
  const [rows, columns] = network.preprocess.size, layer = new OffscreenCanvas(columns, rows), brush = layer.getContext("2d");
  const picture = new ImageData(columns, rows), colours = new Map();
  for (const [label] of measureAreas(labels)) {
    brush.fillStyle = pickColour(label);
    brush.fillRect(0, 0, 1, 1);
    colours.set(label, brush.getImageData(0, 0, 1, 1).data);
  }
  labels.forEach((label, i) => picture.data.set(colours.get(label), 4 * i));
  brush.putImageData(picture, 0, 0);
  context.globalAlpha = 0.55;
  context.imageSmoothingEnabled = false;
  context.drawImage(layer, 0, 0, width, height);
}

function listColours(views) {
  const present = new Set(views.flatMap((view) => measureAreas(view.labels).map(([label]) => label)));
  return [...present].sort((a, b) => a - b).map((label) => {
    const entry = document.createElement("span");
    entry.textContent = nameLabel(label);
    entry.style.setProperty("--colour", pickColour(label));
    return entry;
  });
}

function addRow(one) {
  const row = document.createElement("tr");
  row.tabIndex = 0;
  for (const text of [one.name, nameAnswer(one), one.exit, one.score.toFixed(4), one.ms.toFixed(1)]) row.insertCell().textContent = text;
  row.onclick = () => show(one);
  row.onkeydown = (event) => event.key === "Enter" && show(one);
  byId("rows").append(row);
}

async function take(files) {
  const bad = [];
  document.body.dataset.busy = "true";
  byId("rows").replaceChildren();
  shown = [];
  for (const [i, file] of [...files].entries()) {
    say(`${i + 1} of ${files.length}…`);
    try {
      const one = await answer(file);
      shown.push(one);
      addRow(one);
      if (shown.length === 1) await show(one);
    } catch (error) {
      bad.push(`${file.name} cannot be read as a picture (${error.message})`);
    }
  }
  if (network.task === "embedding" && shown.length > 1) {  // now every picture can be compared with all
    byId("rows").replaceChildren();
    shown.forEach(addRow);
    await show(shown[0]);
  }
  byId("list").hidden = shown.length < 2;
  byId("answer").hidden = shown.length === 0;
  say(bad.join("; "), bad.length > 0);
  delete document.body.dataset.busy;
}

// Pictures that came along, to click. A page that shows this one in a frame asks for one of them by #name.
function offer(names) {
  const buttons = names.map((name) => {
    const button = document.createElement("button"), picture = document.createElement("img");
    Object.assign(picture, { src: encodeURIComponent(name), alt: `Answer ${name}` });
    button.onclick = () => answerExample(name);
    button.append(picture);
    return button;
  });
  byId("examples").replaceChildren(...buttons);
  byId("examples").hidden = names.length === 0;
  window.onhashchange = () => names.includes(readHash()) && answerExample(readHash());
  return window.onhashchange();
}

const readHash = () => decodeURIComponent(location.hash.slice(1));

async function answerExample(name) {
  await take([new File([await (await fetch(encodeURIComponent(name))).blob()], name)]);
}

byId("files").onchange = (event) => take(event.target.files);
byId("drop").ondragover = (event) => { event.preventDefault(); byId("drop").classList.add("over"); };
byId("drop").ondragleave = () => byId("drop").classList.remove("over");
byId("drop").ondrop = (event) => { event.preventDefault(); byId("drop").classList.remove("over"); take(event.dataTransfer.files); };
start().catch((error) => {
  const hint = location.protocol === "file:" ? "Browsers load it only from a server: run python -m http.server in this folder." : error.message;
  byId("about").textContent = "The network cannot be loaded.";
  say(hint, true);
});
