/**
 * A delta with its base: the entries of parts that are `ranked`, SD418, and what can be checked then (SD409, SD410).
 */

import { checkContent, checkDisjoint, isWaiting } from "./content.js";
import { toWords } from "./dtypes.js";
import { baseName } from "./names.js";
import { withBase } from "./ranked.js";

/**
 * @typedef {import("./content.js").ReadPart} ReadPart
 * @typedef {import("./content.js").ReadRecord} ReadRecord
 * @typedef {import("./delta.js").Delta} Delta
 */

/**
 * @param {Delta} delta
 * @param {Map<string, {bytes: Uint8Array}>} base its tensors; their digests have been checked
 * @returns {Delta} one in which no part waits
 */
export function resolve(delta, base) {
  if (!isWaiting(delta.records)) {
    return delta;
  }
  const records = delta.records.map((read) => ({ ...read, parts: read.parts.map((placed) => carry(read, placed, base)) }));
  records.forEach(checkDisjoint);
  checkContent(delta.manifest, records);
  return { ...delta, records };
}

/**
 * @param {ReadRecord} read
 * @param {ReadPart} placed
 * @param {Map<string, {bytes: Uint8Array}>} base
 * @returns {ReadPart}
 */
function carry({ record, parts }, placed, base) {
  if (placed.waiting === null) {
    return placed;
  }
  // Behind a `new` with `from`, the words are those of the copy.
  const copy = parts.find(({ part }) => part.from !== null);
  const name = placed.side === "N" ? copy?.part.from : baseName(record);
  const { bytes } = /** @type {{bytes: Uint8Array}} */ (base.get(/** @type {string} */ (name)));
  const words = /** @type {Uint16Array} */ (toWords(2, bytes));
  const blocks = placed.waiting.map((block) => withBase(block, words, placed.dtype));
  const carried = {
    indices: Float64Array.from(blocks.flatMap(({ indices }) => indices)),
    words: Uint16Array.from(blocks.flatMap(({ words: own }) => [...own])),
  };
  return { ...placed, carried, waiting: null };
}
