/**
 * The index codecs: `gap8`, `gap8-split`, `bitmask`, `range`, `dense`, `raw`. Of `ranked`, the lengths only.
 */

import { readU32 } from "./bytes.js";
import { rule } from "./rules.js";

/** @typedef {import("./codecs.js").IndexCodec} IndexCodec */

/**
 * The numbers g of a stream of `gap8`: bytes of 255 and one byte below that make one number, their sum.
 * @param {Uint8Array} stream
 * @param {number} count how many there have to be
 * @param {string} code
 * @returns {Float64Array} each below 2^33
 */
export function readGaps(stream, count, code) {
  const gaps = new Float64Array(count);
  let found = 0;
  let full = 0;
  for (const byte of stream) {
    if (byte === 255) {
      full += 255;
      continue;
    }
    rule(found < count, code, `more than ${count} gaps`);
    gaps[found] = full + byte;
    found += 1;
    full = 0;
  }
  rule(found === count, code, `${found} gaps, expected ${count}`);
  rule(stream.at(-1) !== 255, code, "the last gap does not end");
  return gaps;
}

/**
 * The sums of gaps. Sums that leave the block are refused as soon as they do, so that they stay exact.
 * @param {Float64Array} gaps
 * @param {number} words
 * @param {string} code
 * @returns {Uint32Array}
 */
export function sumGaps(gaps, words, code) {
  const indices = new Uint32Array(gaps.length);
  let next = 0;
  gaps.forEach((gap, i) => {
    const index = next + gap;
    rule(index < words, code, `index ${index} in a block of ${words} words`);
    indices[i] = index;
    next = index + 1;
  });
  return indices;
}

/** @param {number} length @param {number} count @param {number} words @returns {boolean} */
function isGapLength(length, count, words) {
  return length >= count && length <= count + Math.floor(words / 255);
}

/** @param {Uint8Array} bits @param {number} i @returns {number} bit i, the least significant of a byte first */
function bit(bits, i) {
  return (bits[i >> 3] >> (i & 7)) & 1;
}

/** @param {Uint8Array} bits @param {number} used @returns {boolean} whether all bits behind those used are 0 */
export function spareBitsAreZero(bits, used) {
  return used % 8 === 0 || bits[bits.length - 1] >> (used % 8) === 0;
}

const perEntry = (/** @type {number} */ count) => count;

/** @type {IndexCodec} */
export const gap8 = {
  id: "gap8",
  streams: 1,
  allows: ([length], count, words) => isGapLength(length, count, words),
  held: perEntry,
  decode: ([gaps], { count, words }) => sumGaps(readGaps(gaps, count, "SD403"), words, "SD403"),
};

/** @type {IndexCodec} */
export const gap8Split = {
  id: "gap8-split",
  streams: 2,
  allows: ([quo, low], count, words) =>
    isGapLength(quo, count, words) && low >= 1 && low <= 1 + 24 * Math.ceil(count / 8),
  held: perEntry,
  decode: ([quo, low], { count, words }) => {
    const quotients = readGaps(quo, count, "SD411");
    const k = low[0];
    const plane = Math.ceil(count / 8);
    rule(k <= 24 && low.length === 1 + k * plane, "SD411", `LOW of ${low.length} bytes for k = ${k}`);
    const planes = Array.from({ length: k }, (_, t) => low.subarray(1 + t * plane, 1 + (t + 1) * plane));
    rule(planes.every((bits) => spareBitsAreZero(bits, count)), "SD411", "a spare bit is set");
    const gaps = quotients.map((q, j) => {
      // No shift: q * 2^k can have 57 bits. What is rounded is far outside of the block.
      const remainder = planes.reduce((sum, bits, t) => sum + bit(bits, j) * 2 ** t, 0);
      return q * 2 ** k + remainder;
    });
    return sumGaps(gaps, words, "SD411");
  },
};

/** @type {IndexCodec} */
export const bitmask = {
  id: "bitmask",
  streams: 1,
  allows: ([length], _count, words) => length === Math.ceil(words / 8),
  held: perEntry,
  decode: ([bits], { count, words }) => {
    rule(spareBitsAreZero(bits, words), "SD404", "a spare bit is set");
    const indices = new Uint32Array(count);
    let found = 0;
    for (let i = 0; i < words; i += 1) {
      if (bit(bits, i) === 1) {
        rule(found < count, "SD404", `more than ${count} bits are set`);
        indices[found] = i;
        found += 1;
      }
    }
    rule(found === count, "SD404", `${found} bits are set, expected ${count}`);
    return indices;
  },
};

/** @param {number} first @param {number} length @returns {Uint32Array} */
function run(first, length) {
  return new Uint32Array(length).map((_, i) => first + i);
}

/** @type {IndexCodec} */
export const range = {
  id: "range",
  streams: 1,
  allows: ([length]) => length === 8,
  held: () => null,
  decode: ([bytes], { count, words, held, exact }) => {
    const [first, length] = [readU32(bytes, 0), readU32(bytes, 4)];
    rule(first + length <= words, "SD412", `a run of ${length} words from ${first} in ${words}`);
    rule(exact ? length === count : length >= count, "SD412", `a run of ${length} words for a count of ${count}`);
    rule(length === held, "SD412", `a run of ${length} words with ${held} values`);
    return run(first, length);
  },
};

/** @type {IndexCodec} */
export const dense = {
  id: "dense",
  streams: 0,
  allows: () => true,
  held: (_count, words) => words,
  decode: (_streams, { words }) => run(0, words),
};

/** @type {IndexCodec} */
export const rawIndex = {
  id: "raw",
  streams: 1,
  allows: ([length], count) => length === 4 * count,
  held: perEntry,
  decode: ([bytes], { count, words }) => {
    const indices = new Uint32Array(count);
    for (let i = 0; i < count; i += 1) {
      indices[i] = readU32(bytes, 4 * i);
      rule(i === 0 || indices[i] > indices[i - 1], "SD413", "the indices do not ascend");
    }
    rule(indices[count - 1] < words, "SD413", `index ${indices[count - 1]} in a block of ${words} words`);
    return indices;
  },
};

/**
 * Its one stream is read by `ranked.js`, which needs more than a block.
 * @type {IndexCodec}
 */
export const ranked = {
  id: "ranked",
  streams: 1,
  allows: ([length], count, words) => length >= 10 && length <= 2 ** 15 + words + 5 * count,
  held: perEntry,
  decode: () => {
    throw new Error("a block of ranked has no index streams of its own");
  },
};
