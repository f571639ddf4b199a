/**
 * The value codecs: `packed`, `zigzag`, `planes`, `raw`. Of `ranked`, that it has no stream.
 *
 * Words of 8 bytes are bigints, all others numbers. Typed arrays take what they are given modulo 2^(8W), negative
 * numbers too: that is the two's complement which the codecs ask for.
 */

import { bytesOf, newWords, toWords } from "./dtypes.js";
import { spareBitsAreZero } from "./index_codecs.js";
import { rule } from "./rules.js";

/**
 * @typedef {import("./dtypes.js").Words} Words
 * @typedef {import("./codecs.js").ValueCodec} ValueCodec
 */

/**
 * Words from byte planes, the lowest bytes first.
 * @param {Uint8Array[]} streams W planes
 * @param {number} count
 * @param {number} width W
 * @returns {Words}
 */
function fromPlanes(streams, count, width) {
  const words = newWords(width, count);
  const bytes = bytesOf(words);
  streams.forEach((plane, j) => {
    for (let i = 0; i < count; i += 1) {
      bytes[i * width + j] = plane[i];
    }
  });
  return words;
}

/**
 * The items of an EXC stream: words in byte planes, one plane behind the other.
 * @param {Uint8Array} stream
 * @param {number} width
 * @param {number} expected how many there have to be
 * @param {string} code
 * @returns {bigint[] | Words}
 */
function readItems(stream, width, expected, code) {
  const count = stream.length / width;
  rule(count === expected, code, `${count} exceptions, expected ${expected}`);
  const planes = Array.from({ length: width }, (_, j) => stream.subarray(j * count, (j + 1) * count));
  return fromPlanes(planes, count, width);
}

/** @param {Uint8Array} symbols @param {number} escape @returns {number} how many symbols are the escape */
function countOf(symbols, escape) {
  return symbols.reduce((sum, symbol) => sum + Number(symbol === escape), 0);
}

/** @param {number} length @param {number} held @param {number} width @returns {boolean} SD304 for an EXC stream */
function isExceptionLength(length, held, width) {
  return length % width === 0 && length <= held * width;
}

/**
 * The m symbols of p bits each: symbols i, i + q, i + 2q, … lie in byte i, from its low bits upwards.
 * @param {Uint8Array} stream MAG
 * @param {number} held m
 * @param {number} bits p
 * @returns {Uint8Array}
 */
function readSymbols(stream, held, bits) {
  const symbols = new Uint8Array(held);
  const q = stream.length;
  for (let i = 0; bits > 0 && i < held; i += 1) {
    symbols[i] = (stream[i % q] >> (Math.floor(i / q) * bits)) & (2 ** bits - 1);
  }
  // Those that would lie at or behind m are spare.
  for (let i = held; bits > 0 && i < q * (8 / bits); i += 1) {
    const spare = (stream[i % q] >> (Math.floor(i / q) * bits)) & (2 ** bits - 1);
    rule(spare === 0, "SD406", "a spare bit of a symbol is set");
  }
  return symbols;
}

/**
 * @param {Uint8Array[]} streams SIGN, MAG, EXC
 * @param {number} held m
 * @param {number} width W
 * @param {number} bits p
 * @returns {Words}
 */
function decodePacked([sign, mag, exc], held, width, bits) {
  rule(spareBitsAreZero(sign, held), "SD406", "a spare bit of SIGN is set");
  const symbols = readSymbols(mag, held, bits);
  const escape = 2 ** bits - 1;
  const items = readItems(exc, width, countOf(symbols, escape), "SD406");
  const wide = width === 8;
  // The greatest a of a negative value; that of a positive one is less by 1.
  const most = wide ? 2n ** 63n - 1n : 2 ** (8 * width - 1) - 1;
  /** @type {any} */
  const one = wide ? 1n : 1;
  const out = newWords(width, held);
  let item = 0;
  for (let i = 0; i < held; i += 1) {
    const negative = (sign[i >> 3] >> (i & 7)) & 1;
    /** @type {any} */
    let a = wide ? BigInt(symbols[i]) : symbols[i];
    if (symbols[i] === escape) {
      a += items[item];
      item += 1;
    }
    rule(a < most || (negative === 1 && a === most), "SD406", `a magnitude of ${a}`);
    // |s| = a + 1, and -(a + 1) is the complement of a.
    out[i] = negative === 1 ? -one - a : a + one;
  }
  return out;
}

/**
 * @param {number} bits p
 * @returns {ValueCodec}
 */
export function packed(bits) {
  return {
    id: "packed",
    streams: () => 3,
    held: ([sign]) => sign * 8,
    allows: ([sign, mag, exc], held, width) => sign === Math.ceil(held / 8) && mag === Math.ceil((held * bits) / 8)
      && isExceptionLength(exc, held, width),
    marks: (streams, held, width) => decodePacked(streams, held, width, bits),
    decode: (streams, held, width) => decodePacked(streams, held, width, bits),
  };
}

/** @type {ValueCodec} */
export const zigzag = {
  id: "zigzag",
  streams: () => 2,
  held: ([sym]) => sym,
  allows: ([sym, exc], held, width) => sym === held && isExceptionLength(exc, held, width),
  marks: ([sym]) => sym,
  decode: ([sym, exc], held, width) => {
    const items = readItems(exc, width, countOf(sym, 255), "SD407");
    const out = newWords(width, held);
    const wide = width === 8;
    const most = wide ? 2n ** 64n - 256n : 2 ** (8 * width) - 256;
    let item = 0;
    for (let i = 0; i < held; i += 1) {
      /** @type {any} */
      let z = wide ? BigInt(sym[i]) : sym[i];
      if (sym[i] === 255) {
        rule(items[item] <= most, "SD407", `an exception of ${items[item]}`);
        z += items[item];
        item += 1;
      }
      // z = 2s, or -2s - 1 where s is negative. A division of bigints drops the rest.
      if (wide) {
        out[i] = z % 2n === 0n ? z / 2n : -(z / 2n) - 1n;
      } else {
        out[i] = z % 2 === 0 ? z / 2 : -(z + 1) / 2;
      }
    }
    return out;
  },
};

/** @type {ValueCodec} */
export const planes = {
  id: "planes",
  streams: (width) => width,
  held: ([plane]) => plane,
  allows: (lengths, held) => lengths.every((length) => length === held),
  marks: fromPlanes,
  decode: fromPlanes,
};

/** @param {Uint8Array[]} streams @param {number} _held @param {number} width @returns {Words} */
const readWords = ([words], _held, width) => toWords(width, words);

/** @type {ValueCodec} */
export const rawValue = {
  id: "raw",
  streams: () => 1,
  held: ([length], width) => length / width,
  allows: ([length], held, width) => Number.isInteger(held) && length === held * width,
  marks: readWords,
  decode: readWords,
};

/** @returns {never} */
const noValues = () => {
  throw new Error("a block of ranked has no value streams of its own");
};

/** @type {ValueCodec} */
export const rankedValue = {
  id: "ranked",
  streams: () => 0,
  held: noValues,
  allows: () => true,
  marks: noValues,
  decode: noValues,
};
