// Runs the file of all widths in this browser: predictions of the test images, accuracy and time at every width.

const RUNTIME = "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
const SHOWN = 24; // images on the page: as many of those that some width gets wrong as fit into half, then the first
const ROUNDS = 9, CALLS = 10; // of one image, to time a width
const at = (id) => document.getElementById(id);

/** The test images as the network wants them, and all that digits.json says. */
async function readImages() {
  const about = await (await fetch("digits.json")).json();
  const pixels = Uint8Array.from(atob(about.pixels), (character) => character.charCodeAt(0));
  // in single precision step by step, as the suite does it: the same numbers to the last bit
  const [mean, std] = [about.mean, about.std].map(Math.fround);
  const numbers = Float32Array.from(pixels, (value) => Math.fround(Math.fround(value / about.white) - mean) / std);
  return { ...about, pixels, numbers, area: about.shape[1] * about.shape[2] };
}

/** A function (bits, first image, count) -> the predicted classes. */
async function openNetwork(images) {
  const ort = await import(RUNTIME).catch(() => {
    throw new Error("The runtime is not here. Run: make demo");
  });
  ort.env.wasm.numThreads = 1; // more would need headers that a plain server does not send
  const session = await ort.InferenceSession.create(images.file);
  return async (bits, first, count) => {
    const part = images.numbers.subarray(first * images.area, (first + count) * images.area);
    const feeds = {
      images: new ort.Tensor("float32", part, [count, ...images.shape]),
      bits: new ort.Tensor("int64", BigInt64Array.of(BigInt(bits)), []),
    };
    const { logits } = await session.run(feeds);
    const classes = logits.dims[1];
    return Array.from({ length: count }, (_, image) => {
      const own = logits.data.subarray(image * classes, (image + 1) * classes);
      return own.indexOf(Math.max(...own));
    });
  };
}

/** Milliseconds of a call with one image at each width: medians of rounds in which the widths take turns. */
async function timesOf(predict, widths) {
  const rounds = widths.map(() => []);
  for (let round = 0; round < ROUNDS; round++) {
    for (const [number, bits] of widths.entries()) {
      const start = performance.now();
      for (let call = 0; call < CALLS; call++) await predict(bits, 0, 1);
      rounds[number].push((performance.now() - start) / CALLS);
    }
  }
  return rounds.map((times) => times.sort((a, b) => a - b)[ROUNDS >> 1]);
}

function draw(images, index) {
  const [, height, width] = images.shape;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const bytes = new Uint8ClampedArray(4 * images.area);
  for (let pixel = 0; pixel < images.area; pixel++) {
    const grey = 255 - (255 * images.pixels[index * images.area + pixel]) / images.white;
    bytes.set([grey, grey, grey, 255], 4 * pixel);
  }
  canvas.getContext("2d").putImageData(new ImageData(bytes, width, height), 0, 0);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `a handwritten ${images.labels[index]}`);
  const figure = document.createElement("figure");
  figure.append(canvas, document.createElement("figcaption"));
  at("digits").append(figure);
  return figure.lastChild;
}

/** The images that are shown: those that tell the widths apart first. */
function choose(images, found) {
  const all = images.labels.map((_, index) => index);
  const wrong = all.filter((index) => found.some((row) => row.predicted[index] !== images.labels[index]));
  return [...new Set([...wrong.slice(0, SHOWN / 2), ...all])].slice(0, SHOWN).sort((a, b) => a - b);
}

function showWidth(images, found, captions, row) {
  at("chosen").textContent = `${row.bits} (${row.width})`;
  at("bits").setAttribute("aria-valuetext", `${row.bits} bits`);
  for (const [index, caption] of captions) {
    const [predicted, label] = [row.predicted[index], images.labels[index]];
    caption.textContent = predicted === label ? predicted : `${predicted}, not ${label}`;
    caption.className = predicted === label ? "" : "wrong";
  }
  for (const other of found) other.line.setAttribute("aria-current", other === row);
  at("status").textContent =
    `At ${row.bits} bits, ${row.correct} of ${images.labels.length} test images are read correctly.`;
}

async function main() {
  const images = await readImages();
  const predict = await openNetwork(images);
  const found = [];
  for (const [bits, width] of Object.entries(images.widths)) {
    at("status").textContent = `Reading at ${width} …`;
    const predicted = await predict(bits, 0, images.labels.length);
    const correct = predicted.filter((digit, index) => digit === images.labels[index]).length;
    const line = at("widths").insertRow();
    const share = `${((100 * correct) / images.labels.length).toFixed(2)} %`;
    const cells = [width, share, `${correct} of ${images.labels.length}`, ""];
    for (const cell of cells) line.insertCell().textContent = cell;
    at("ticks").append(Object.assign(document.createElement("span"), { textContent: bits }));
    found.push({ bits, width, predicted, correct, line });
  }
  at("status").textContent = "Timing …";
  const times = await timesOf(predict, found.map((row) => row.bits));
  for (const [number, row] of found.entries()) row.line.lastChild.textContent = times[number].toFixed(2);
  const captions = choose(images, found).map((index) => [index, draw(images, index)]);
  const slider = Object.assign(at("bits"), { min: 0, max: found.length - 1, step: 1, disabled: false });
  slider.value = found.length - 1;
  const show = () => showWidth(images, found, captions, found[slider.value]);
  slider.addEventListener("input", show);
  show();
  at("about").innerHTML = `<h2>The file</h2><p><a></a>: ${images.bytes.toLocaleString("en")} bytes for all widths,
    against ${images.fp32_bytes.toLocaleString("en")} for the network in floating point. SHA-256 <code>${images.sha256}</code>.
    Made by <code>${images.command}</code>. The suite's page on deployment says how.</p>`;
  Object.assign(at("about").querySelector("a"), { href: images.file, textContent: images.file });
  document.documentElement.dataset.predictions = JSON.stringify(found.map((row) => row.predicted));
}

main().catch((error) => {
  at("status").textContent = error.message;
});
