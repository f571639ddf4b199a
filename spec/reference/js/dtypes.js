/**
 * Dtypes, sizes and words (sections 1 and 2).
 */

import os from "node:os";

// Words are seen through typed arrays, which have the byte order of the machine. A reader that must run elsewhere swaps.
if (os.endianness() !== "LE") {
  throw new Error("this reader needs a little-endian machine");
}

/** Names, bits of an element, bytes of a word. @type {[string, number, number][]} */
const ROWS = [
  ["BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ", 8, 1],
  ["F4", 4, 1],
  ["F6_E2M3 F6_E3M2", 6, 1],
  ["U16 I16 F16 BF16", 16, 2],
  ["U32 I32 F32", 32, 4],
  ["U64 I64 F64 C64", 64, 8],
];
const DTYPES = new Map(ROWS.flatMap(([names, bits, width]) => names.split(" ").map((name) => [name, { bits, width }])));

/** The most words that a tensor has. */
export const MOST_WORDS = 2 ** 48;

/**
 * Words of 1, 2, 4 or 8 bytes. Only the last are bigints.
 * @typedef {Uint8Array | Uint16Array | Uint32Array | BigUint64Array} Words
 */

/** @param {string} dtype a known one @returns {number} W */
export function wordBytes(dtype) {
  return /** @type {{width: number}} */ (DTYPES.get(dtype)).width;
}

/**
 * The bytes of a tensor. The product is taken in bigints: 64 dimensions of up to 2^53 - 1 do not fit any number.
 * @param {string} dtype
 * @param {number[]} shape
 * @returns {bigint | null} null if the dtype is unknown or the bytes are no whole number
 */
export function byteLength(dtype, shape) {
  const known = DTYPES.get(dtype);
  if (known === undefined) {
    return null;
  }
  const bits = shape.includes(0) ? 0n : shape.reduce((product, d) => product * BigInt(d), BigInt(known.bits));
  return bits % 8n === 0n ? bits / 8n : null;
}

/**
 * @param {{dtype: string, shape: number[]}} tensor one that SD208 allows
 * @returns {number} its words, at most 2^48
 */
export function wordCount({ dtype, shape }) {
  return Number(/** @type {bigint} */ (byteLength(dtype, shape))) / wordBytes(dtype);
}

/**
 * @param {{dtype: string, shape: number[]} | null} a
 * @param {{dtype: string, shape: number[]} | null} b
 * @returns {boolean} whether both are there, with the same dtype and shape
 */
export function sameShape(a, b) {
  return a !== null && b !== null && a.dtype === b.dtype
    && a.shape.length === b.shape.length && a.shape.every((d, i) => d === b.shape[i]);
}

/**
 * @param {number} width W
 * @param {number} count
 * @returns {Words} so many words, all 0
 */
export function newWords(width, count) {
  switch (width) {
    case 1: return new Uint8Array(count);
    case 2: return new Uint16Array(count);
    case 4: return new Uint32Array(count);
    default: return new BigUint64Array(count);
  }
}

/**
 * @param {number} width W
 * @param {Uint8Array} bytes a multiple of W of them
 * @returns {Words} a copy, as words
 */
export function toWords(width, bytes) {
  const out = newWords(width, bytes.length / width);
  bytesOf(out).set(bytes);
  return out;
}

/** @param {Words | Float64Array | Float32Array} words @returns {Uint8Array} the same memory, as bytes */
export function bytesOf(words) {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}
