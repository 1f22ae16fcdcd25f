import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";

const about = JSON.parse(readFileSync("digits.json"));
const pixels = Buffer.from(about.pixels, "base64").subarray(0, 64); // the first test image
const prepared = Float32Array.from(pixels, (pixel) => (pixel / about.white - about.mean) / about.std);
const images = new ort.Tensor("float32", prepared, [1, 1, 8, 8]);
const session = await ort.InferenceSession.create(readFileSync("digits.onnx"));
for (const width of [3n, 8n]) {
  const bits = new ort.Tensor("int64", BigInt64Array.of(width), []);
  const { logits } = await session.run({ images, bits });
  console.log(`${width} bits: ${logits.data.indexOf(Math.max(...logits.data))}`);
}
