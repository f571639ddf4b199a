/**
 * The worked examples of the text: `spec/codecs/*.md` and `spec/fingerprints.md`.
 */

import { readFileSync, readdirSync } from "node:fs";

import { fromHex, hex } from "./bytes.js";
import { readBlock } from "./blocks.js";
import { indexCodec, valueCodec } from "./codecs.js";
import { fingerprint, segmentDigests, tensorDigest } from "./digests.js";
import { readRanked, withBase } from "./ranked.js";

/** @typedef {[string, string][]} Lines keys and values of a block, in order */

/** @param {URL} page @param {string} kind @returns {Lines[]} */
function fenced(page, kind) {
  const blocks = readFileSync(page, "utf8").matchAll(new RegExp(`^\`\`\`${kind}\\n(.*?)^\`\`\`$`, "gms"));
  return [...blocks].map(([, body]) => body.split("\n")
    .map((line) => line.replace(/\s*#.*/, ""))
    .filter((line) => line !== "")
    .map((line) => /** @type {[string, string]} */ ([line.split(":", 1)[0], line.slice(line.indexOf(":") + 1).trim()])));
}

/** @param {Lines} lines @returns {Map<string, string>} lines with the same key continue each other */
function joined(lines) {
  const out = new Map();
  for (const [key, value] of lines) {
    out.set(key, `${out.get(key) ?? ""} ${value}`.trim());
  }
  return out;
}

/** @param {string} digits with spaces @returns {Uint8Array} */
function bytes(digits) {
  return fromHex(digits.replaceAll(" ", ""));
}

/**
 * An example gives the index codec, the value codec, or both; what it does not give is made up.
 * @param {Map<string, string>} example
 * @returns {boolean} whether this reader finds what it says
 */
function holds(example) {
  const given = (/** @type {string} */ key) => example.get(key)?.split(" ").filter((item) => item !== "");
  const streams = [...example.keys()].filter((key) => /^[A-Z]/.test(key)).map((key) => bytes(example.get(key) ?? ""));
  const count = (given("indices") ?? given("values") ?? []).length;
  const width = Number(example.get("word") ?? 1);
  const index = { codec: new Map([["id", example.get("index") ?? "dense"]]), streams };
  const value = new Map(/** @type {[string, any][]} */ ([["id", example.get("value") ?? "raw"]]));
  if (example.has("width")) {
    value.set("width", Number(example.get("width")));
  }
  const op = example.get("op") ?? (example.has("value") && example.has("index") ? "difference" : "replace");
  const part = /** @type {any} */ ({ op, index: index.codec, value });
  if (!example.has("value")) {
    streams.push(new Uint8Array(count * width).fill(1));
  }
  const words = Number(example.get("block") ?? count);
  const decoded = streams.map((stream) => stream.length);
  const own = indexCodec(part).streams;
  const held = indexCodec(part).held(count, words) ?? valueCodec(part).held(decoded.slice(own), width);
  const allowed = indexCodec(part).allows(decoded.slice(0, own), count, words)
    && valueCodec(part).allows(decoded.slice(own), held, width);
  const block = readBlock(/** @type {any} */ ({ part, width }), /** @type {any} */ ({ count, words, decoded }), streams);
  const values = [...block.words].map((word) => word.toString(16).padStart(2 * width, "0"));
  return allowed
    && (!example.has("indices") || [...block.indices].join(" ") === example.get("indices"))
    && (!example.has("values") || values.join(" ") === example.get("values"));
}

/**
 * An example of `ranked` has the base words too, and its streams are the fields of the one that there is.
 * @param {Map<string, string>} example
 * @returns {boolean}
 */
function rankedHolds(example) {
  const hexed = (/** @type {string} */ key) => (example.get(key) ?? "").split(" ").map((word) => Number.parseInt(word, 16));
  const [first, words, dtype] = [Number(example.get("first")), Number(example.get("block")), example.get("dtype") ?? ""];
  const pieces = [...example].filter(([key]) => /^[A-Z]/.test(key)).map(([, digits]) => digits);
  const count = hexed("values").length;
  const block = readRanked(bytes(pieces.join(" ")), { words, first, count }, dtype);
  const base = Uint16Array.from([...new Array(first).fill(0), ...hexed("base")]);
  const found = withBase(block, base, dtype);
  return found.indices.map((index) => index - first).join(" ") === example.get("indices")
    && [...found.words].join() === hexed("values").join();
}

/** @param {Lines} lines @returns {boolean} */
function fingerprintHolds(lines) {
  const stated = lines.filter(([key]) => key.endsWith("digest") && key !== "segment digest").map(([, value]) => value);
  const tensors = new Map();
  /** @type {string[]} */
  const found = [];
  lines.forEach(([key, value], i) => {
    if (key === "tensor") {
      const [name, dtype, shape] = JSON.parse(value);
      const digest = tensorDigest({ dtype, shape }, segmentDigests(dtype, bytes(lines[i + 1][1])));
      tensors.set(name, digest);
      found.push(hex(digest));
    }
  });
  return found.join() === stated.join() && hex(fingerprint(tensors)) === joined(lines).get("fingerprint");
}

/**
 * @param {URL} spec the folder `spec/`
 * @returns {{name: string, holds: () => boolean}[]}
 */
export function workedExamples(spec) {
  const folder = new URL("codecs/", spec);
  const codecs = readdirSync(folder).filter((name) => name.endsWith(".md")).flatMap((name) =>
    fenced(new URL(name, folder), "worked-example").map((lines, i) =>
      ({
        name: `codecs/${name} example ${i + 1}`,
        holds: () => (name === "ranked.md" ? rankedHolds : holds)(joined(lines)),
      })));
  const fingerprints = fenced(new URL("fingerprints.md", spec), "worked-fingerprint").map((lines, i) =>
    ({ name: `fingerprints.md example ${i + 1}`, holds: () => fingerprintHolds(lines) }));
  return [...codecs, ...fingerprints];
}
