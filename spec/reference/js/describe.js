/**
 * A delta as JSON: what `expected.json` of a vector holds, and what the command line prints (`spec/README.md`).
 */

import { hex } from "./bytes.js";
import { indexBytes } from "./content.js";
import { b3 } from "./digests.js";
import { bytesOf } from "./dtypes.js";

/** More entries than these are given as digests. */
const MOST_LISTED = 64;

/** @typedef {import("./delta.js").Delta} Delta */

/** @param {import("./dtypes.js").Words} words @returns {string[]} numerals, the highest digit first */
function numerals(words) {
  return Array.from(/** @type {any} */ (words), (/** @type {number | bigint} */ word) =>
    word.toString(16).padStart(2 * words.BYTES_PER_ELEMENT, "0"));
}

/** @param {Float64Array} indices @returns {string} */
function indexDigest(indices) {
  const bytes = new Uint8Array(8 * indices.length);
  let at = 0;
  indexBytes(indices, (piece) => {
    bytes.set(piece, at);
    at += piece.length;
  });
  return hex(b3(bytes));
}

/** @param {import("./blocks.js").Carried} carried @returns {object} */
function describeCarried({ indices, words }) {
  if (words.length <= MOST_LISTED) {
    return { ...(indices === null ? {} : { indices: Array.from(indices) }), words: numerals(words) };
  }
  return { ...(indices === null ? {} : { indices_b3: indexDigest(indices) }), words_b3: hex(b3(bytesOf(words))) };
}

/** @param {import("./content.js").ReadPart} placed @returns {object} */
function describePart({ part, carried, waiting }) {
  const { op, dtype, scale, from, to } = part;
  const single = Object.entries({ dtype, scale, from, to }).filter(([, value]) => value !== null);
  return {
    op,
    ...Object.fromEntries(single),
    ...(waiting === null ? {} : { nnz: part.nnz }),
    ...(carried === null ? {} : { nnz: part.nnz, ...describeCarried(carried) }),
  };
}

/**
 * @param {Delta} delta
 * @returns {Record<string, any>}
 */
export function describe({ manifest, records, blobs }) {
  const { base, target, content, invertible, nnz, lean, untouched, layout, files, set } = manifest;
  return {
    base,
    target,
    content,
    invertible,
    nnz,
    lean,
    untouched,
    tensors: records.map(({ record, parts }) => ({
      name: record.name,
      from: record.from,
      base: record.base,
      target: record.target,
      parts: parts.map(describePart),
    })),
    blobs: blobs.map((blob) => hex(b3(blob))),
    layout,
    files,
    set,
  };
}
