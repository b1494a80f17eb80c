// How a picture becomes a network's input: as the Python library reads it (Pillow's antialiased bilinear resizing,
// grey by its weights, what is transparent on white), then (x / 255 - mean) / std.
"use strict";

function toChannels(rgba, channels) {
  const count = rgba.length / 4, out = new Uint8ClampedArray(count * channels);
  for (let i = 0; i < count; i++) {
    const [r, g, b] = [rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]];
    if (channels === 1) out[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
    else { out[3 * i] = r; out[3 * i + 1] = g; out[3 * i + 2] = b; }
  }
  return out;
}

// Weights of the triangle filter for each new place along one axis: [first old place, weights].
function makeWeights(from, to) {
  const scale = from / to, reach = Math.max(scale, 1), found = [];
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale;
    const low = Math.max(0, Math.trunc(centre - reach + 0.5)), high = Math.min(from, Math.trunc(centre + reach + 0.5));
    const weights = [];
    for (let x = low; x < high; x++) weights.push(Math.max(0, 1 - Math.abs((x + 0.5 - centre) / reach)));
    const sum = weights.reduce((a, b) => a + b, 0);
    found.push([low, weights.map((w) => w / sum)]);
  }
  return found;
}

// Along the width first, then along the height, each rounded to whole numbers, as Pillow does.
function resize(pixels, width, height, channels, newWidth, newHeight) {
  let now = pixels;
  if (newWidth !== width) {
    const weights = makeWeights(width, newWidth), next = new Uint8ClampedArray(newWidth * height * channels);
    for (let y = 0; y < height; y++) for (let x = 0; x < newWidth; x++) for (let c = 0; c < channels; c++) {
      const [low, w] = weights[x];
      let sum = 0;
      for (let i = 0; i < w.length; i++) sum += w[i] * now[(y * width + low + i) * channels + c];
      next[(y * newWidth + x) * channels + c] = Math.floor(sum + 0.5);
    }
    now = next;
  }
  if (newHeight !== height) {
    const weights = makeWeights(height, newHeight), next = new Uint8ClampedArray(newWidth * newHeight * channels);
    for (let y = 0; y < newHeight; y++) for (let x = 0; x < newWidth * channels; x++) {
      const [low, w] = weights[y];
      let sum = 0;
      for (let i = 0; i < w.length; i++) sum += w[i] * now[(low + i) * newWidth * channels + x];
      next[y * newWidth * channels + x] = Math.floor(sum + 0.5);
    }
    now = next;
  }
  return now;
}

function normalise(pixels, channels, mean, std) {
  const count = pixels.length / channels, out = new Float32Array(pixels.length);
  for (let c = 0; c < channels; c++) {
    for (let i = 0; i < count; i++) {
      out[c * count + i] = Math.fround(Math.fround(Math.fround(pixels[i * channels + c] / 255) - Math.fround(mean[c])) / Math.fround(std[c]));
    }
  }
  return out;
}

async function readPicture(file, preprocess) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image", premultiplyAlpha: "none" });
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  const channels = preprocess.mean.length, [height, width] = preprocess.size;
  const pixels = resize(toChannels(data, channels), bitmap.width, bitmap.height, channels, width, height);
  return { input: normalise(pixels, channels, preprocess.mean, preprocess.std), canvas };
}
