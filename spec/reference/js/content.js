/**
 * The content digest: SD410 (section 8). SD409 on the way.
 */

import { concat, fromHex, hex, readU64, text, u32, u64 } from "./bytes.js";
import { b3, hasher, shaped } from "./digests.js";
import { bytesOf } from "./dtypes.js";
import { rule } from "./rules.js";

/**
 * @typedef {import("./blocks.js").Carried} Carried
 * @typedef {import("./tables.js").TabledPart} TabledPart
 * @typedef {import("./tables.js").TabledRecord} TabledRecord
 * @typedef {import("./schema.js").Shaped} Shaped
 *
 * A part with what it carries; null for a bare part. A part that is `ranked` carries nothing as long as the base is not
 * there: `waiting` are its blocks until then.
 * @typedef {TabledPart & {carried: Carried | null, waiting: import("./ranked.js").RankedBlock[] | null}} ReadPart
 *
 * @typedef {Omit<TabledRecord, "parts"> & {parts: ReadPart[]}} ReadRecord
 */

const NOT_COUNTED = 2n ** 64n - 1n;
const CHUNK = 2 ** 16;

/**
 * SD409: the `difference` and the `replace` of the same words have no index in common. Not of a record that waits.
 * @param {ReadRecord} read
 */
export function checkDisjoint(read) {
  if (isWaiting([read])) {
    return;
  }
  for (const side of ["D", "N", "T"]) {
    const [first, second] = read.parts
      .filter((placed) => placed.side === side && placed.carried?.indices)
      .map((placed) => /** @type {Float64Array} */ (placed.carried?.indices));
    let j = 0;
    for (const index of second === undefined ? [] : first) {
      while (j < second.length && second[j] < index) {
        j += 1;
      }
      rule(second[j] !== index, "SD409", `${read.record.name}: index ${index} in two parts`);
    }
  }
}

/**
 * Indices as u64, one behind the other.
 * @param {Float64Array} indices
 * @param {(bytes: Uint8Array) => unknown} take called with pieces
 */
export function indexBytes(indices, take) {
  for (let at = 0; at < indices.length; at += CHUNK) {
    take(bytesOf(BigUint64Array.from(indices.subarray(at, at + CHUNK), BigInt)));
  }
}

/** @param {Shaped | null} end @returns {Uint8Array} */
function endBytes(end) {
  return end === null ? Uint8Array.of(0) : concat([Uint8Array.of(1), shaped(end)]);
}

/** @param {ReadPart} placed @returns {Uint8Array} */
function partBytes({ part, carried }) {
  const indices = hasher("sparsedelta 1 indices");
  indexBytes(carried?.indices ?? new Float64Array(0), (bytes) => indices.update(bytes));
  const words = carried === null ? new Uint8Array(0) : bytesOf(carried.words);
  // The hex digits of a scale begin with its highest byte, and words are little-endian.
  const scale = part.scale === null ? 0n : readU64(fromHex(part.scale).reverse(), 0);
  return concat([
    text(part.op),
    text(part.from ?? part.to ?? ""),
    text(part.dtype ?? ""),
    u64(scale),
    u64(part.coded ? part.nnz : NOT_COUNTED),
    indices.digest(),
    b3(words, "sparsedelta 1 words"),
  ]);
}

/** @param {ReadRecord[]} records @returns {boolean} whether entries are not known yet */
export function isWaiting(records) {
  return records.some(({ parts }) => parts.some(({ waiting }) => waiting !== null));
}

/**
 * SD410, unless entries wait for the base.
 * @param {{base: string, target: string, content: string}} manifest
 * @param {ReadRecord[]} records
 */
export function checkContent({ base, target, content }, records) {
  const known = !isWaiting(records);
  rule(!known || hex(contentDigest(base, target, records)) === content, "SD410", "the content digest is another one");
}

/**
 * @param {string} base fingerprint
 * @param {string} target fingerprint
 * @param {ReadRecord[]} records
 * @returns {Uint8Array}
 */
function contentDigest(base, target, records) {
  const state = hasher("sparsedelta 1 content");
  state.update(concat([fromHex(base), fromHex(target), u64(records.length)]));
  for (const { record, parts } of records) {
    state.update(concat([text(record.name), text(record.from ?? ""), endBytes(record.base), endBytes(record.target)]));
    state.update(u32(parts.length));
    for (const placed of parts) {
      state.update(partBytes(placed));
    }
  }
  return state.digest();
}
