/**
 * Applying and reverting checkpoints in memory: SD501 to SD503 (sections 5 and 7).
 */

import { hex, same } from "./bytes.js";
import { fingerprint, segmentDigests, tensorDigest } from "./digests.js";
import { bytesOf, newWords, toWords, wordBytes, wordCount } from "./dtypes.js";
import { checkCopies, checkFingerprints, endDigests } from "./ends.js";
import { addScaled } from "./floats.js";
import { baseName } from "./names.js";
import { isInvertible } from "./parts.js";
import { resolve } from "./resolve.js";
import { RuleError, rule } from "./rules.js";

/**
 * @typedef {import("./delta.js").Delta} Delta
 * @typedef {import("./content.js").ReadRecord} ReadRecord
 * @typedef {import("./content.js").ReadPart} ReadPart
 * @typedef {import("./dtypes.js").Words} Words
 * @typedef {import("./schema.js").Shaped} Shaped
 *
 * @typedef {Shaped & {bytes: Uint8Array}} Tensor
 * @typedef {Map<string, Tensor>} Checkpoint
 */

/** @param {Checkpoint} checkpoint @returns {Map<string, Uint8Array>} the tensor digest of each name */
export function tensorDigests(checkpoint) {
  return new Map([...checkpoint].map(([name, tensor]) =>
    [name, tensorDigest(tensor, segmentDigests(tensor.dtype, tensor.bytes))]));
}

/** @param {Checkpoint} checkpoint @returns {string} */
export function fingerprintOf(checkpoint) {
  return hex(fingerprint(tensorDigests(checkpoint)));
}

/**
 * @param {Delta} delta
 * @param {Checkpoint} checkpoint the base, or already the target
 * @returns {Checkpoint} the target
 */
export function apply(delta, checkpoint) {
  return lead(delta, checkpoint, "base", "target");
}

/**
 * @param {Delta} delta
 * @param {Checkpoint} checkpoint the target, or already the base
 * @returns {Checkpoint} the base
 */
export function revert(delta, checkpoint) {
  rule(isInvertible(delta.records.map(({ record }) => record)), "SD503", "the delta is not invertible");
  return lead(delta, checkpoint, "target", "base");
}

/** @param {ReadRecord} read @param {"base" | "target"} side @returns {string} its name there */
function nameAt({ record }, side) {
  return side === "base" ? baseName(record) : record.name;
}

/**
 * @param {Delta} delta
 * @param {Checkpoint} checkpoint
 * @param {"base" | "target"} from
 * @param {"base" | "target"} to
 * @returns {Checkpoint}
 */
function lead(delta, checkpoint, from, to) {
  const { manifest, records } = delta;
  rule(delta.complete, "SD601", "a part file alone cannot be applied");
  const digests = tensorDigests(checkpoint);
  const found = hex(fingerprint(digests));
  if (found === manifest[to] && found !== manifest[from]) {
    return checkpoint;
  }
  rule(found === manifest[from], "SD501", `the wrong checkpoint: ${firstDifference(delta, digests, from)}`);
  const touched = new Set(records.filter(({ record }) => record[from] !== null).map((read) => nameAt(read, from)));
  if (manifest.lean) {
    // What could not be checked without the untouched tensors is checked now, before anything is computed. No untouched
    // tensor has the name of a record: one that is new in the target, and in the base already, makes another base.
    const named = new Set(records.flatMap(({ record }) => [record.name, baseName(record)]));
    const untouched = new Map([...digests].filter(([name]) => !named.has(name)));
    checkFingerprints(manifest, records, untouched);
    checkCopies(records, untouched, { lean: false, alone: false });
  }
  /** @type {Checkpoint} */
  const result = new Map([...checkpoint].filter(([name]) => !touched.has(name)));
  const known = to === "target" ? resolve(delta, checkpoint).records : records;
  for (const read of known) {
    const shape = read.record[to];
    if (shape === null) {
      continue;
    }
    const words = to === "target" ? forward(read, checkpoint) : backward(read, checkpoint);
    const tensor = { ...shape, bytes: bytesOf(words) };
    const expected = /** @type {Uint8Array} */ (read[to]);
    rule(same(segmentDigests(shape.dtype, tensor.bytes), expected), "SD502", `${nameAt(read, to)} is another tensor`);
    result.set(nameAt(read, to), tensor);
  }
  rule(fingerprintOf(result) === manifest[to], "SD502", "the result has another fingerprint");
  return result;
}

/** @param {Delta} delta @param {Map<string, Uint8Array>} digests @param {"base" | "target"} side @returns {string} */
function firstDifference({ records, untouched, manifest }, digests, side) {
  const expected = endDigests(records, untouched)[side];
  for (const [name, digest] of expected) {
    const found = digests.get(name);
    if (found === undefined || !same(found, digest)) {
      return `tensor ${name} differs`;
    }
  }
  const more = [...digests.keys()].find((name) => !expected.has(name));
  return manifest.lean || more === undefined ? "a tensor that is not touched differs" : `tensor ${more} is too many`;
}

/** @param {Checkpoint} checkpoint @param {string} name @returns {Words} a copy */
function wordsOf(checkpoint, name) {
  const tensor = /** @type {Tensor} */ (checkpoint.get(name));
  return toWords(wordBytes(tensor.dtype), tensor.bytes);
}

/** @param {Words} words @param {number} count @returns {Words} as many words, the first of them the same; the rest 0 */
function resized(words, count) {
  const out = newWords(words.BYTES_PER_ELEMENT, count);
  out.set(/** @type {any} */ (words.subarray(0, Math.min(count, words.length))));
  return out;
}

/**
 * The words of the target tensor of a record.
 * @param {ReadRecord} read
 * @param {Checkpoint} base
 * @returns {Words}
 */
function forward(read, base) {
  const target = /** @type {Shaped} */ (read.record.target);
  // With D and N, what the N does not copy is not needed.
  const parts = read.parts.filter(({ side }) => side !== "D");
  let words = parts[0]?.side === "N" ? newWords(1, 0) : wordsOf(base, baseName(read.record));
  for (const placed of parts) {
    words = step(placed, words, { target, base });
  }
  return words;
}

/**
 * @param {ReadPart} placed
 * @param {Words} words
 * @param {{target: Shaped, base: Checkpoint}} ends
 * @returns {Words}
 */
function step({ part, carried }, words, { target, base }) {
  switch (part.op) {
    case "new":
      return carried === null ? wordsOf(base, /** @type {string} */ (part.from)) : carried.words;
    case "resize": {
      const out = resized(words, wordCount(target));
      if (out.length > words.length && carried !== null) {
        out.set(/** @type {any} */ (carried.words), words.length);
      }
      return out;
    }
    case "add":
      addScaled({ dtype: target.dtype, words }, /** @type {any} */ ({ ...part, ...carried }));
      return words;
    case "replace":
      return change(words, carried, (_old, value) => value);
    default:
      return change(words, carried, (old, value) => old + value);
  }
}

/**
 * @param {Words} words changed in place
 * @param {ReadPart["carried"]} carried
 * @param {(old: any, value: any) => any} compute of numbers, or bigints for words of 8 bytes; modulo 2^(8W)
 * @returns {Words}
 */
function change(words, carried, compute) {
  const { indices, words: values } = /** @type {{indices: Float64Array, words: Words}} */ (carried);
  indices.forEach((index, i) => {
    /** @type {any} */ (words)[index] = compute(words[index], values[i]);
  });
  return words;
}

/**
 * The words of the base tensor of a record, by the inverses of its parts.
 * @param {ReadRecord} read
 * @param {Checkpoint} target
 * @returns {Words}
 */
function backward(read, target) {
  const base = /** @type {Shaped} */ (read.record.base);
  // With D and N, the target tensor goes, and the D alone tells the base tensor.
  const parts = read.parts.filter(({ side }) => side !== "N").reverse();
  let words = parts[0]?.side === "D" ? newWords(1, 0) : wordsOf(target, read.record.name);
  for (const { part, carried } of parts) {
    if (part.op === "drop") {
      words = carried === null ? wordsOf(target, /** @type {string} */ (part.to)) : carried.words;
    } else if (part.op === "resize") {
      const before = words.length;
      words = resized(words, wordCount(base));
      if (words.length > before && carried !== null) {
        words.set(/** @type {any} */ (carried.words), before);
      }
    } else if (part.op === "difference") {
      words = change(words, carried, (old, value) => old - value);
    } else {
      throw new RuleError("SD503", `${part.op} has no inverse`);
    }
  }
  return words;
}
