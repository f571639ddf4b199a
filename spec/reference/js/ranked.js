/**
 * `ranked`: entries by their ranks among the elements of the base (`spec/codecs/ranked.md`).
 *
 * A block is read in two steps. SD417 needs no base: `readRanked`. SD418 does: `withBase`.
 */

import { newWords } from "./dtypes.js";
import { readGaps, spareBitsAreZero, sumGaps } from "./index_codecs.js";
import { rule } from "./rules.js";

const CODE = "SD417";
const BASE_CODE = "SD418";
/** The bits p of the symbols, by vcode. */
const WIDTHS = [0, 1, 2, 4, 8];
const NEW_WORDS = 5;
/** The greatest a of a negative difference. */
const MOST = 2 ** 15 - 1;
/** No index is as large, so a row of more elements is one that all words are in. */
const MOST_ROW = 2n ** 50n;

/** The lowest bit of the exponent, and its greatest value. @type {Record<string, {shift: number, most: number}>} */
export const EXPONENTS = { BF16: { shift: 7, most: 255 }, F16: { shift: 10, most: 31 } };

/**
 * A class. `size` is that of IDX; `marks` are the bits of a bitmask, `ranks` come from gaps. Its values are differences
 * or new words.
 * @typedef {{lo: number, hi: number, flat: boolean, bitmask: boolean, vcode: number, count: number, size: number,
 *   marks: Uint8Array, ranks: Uint32Array, differences: Int32Array, words: Uint16Array}} Class
 *
 * A block as far as it is known without the base. `first` is its first word, in the domain.
 * @typedef {{first: number, words: number, elements: Uint32Array, classes: Class[]}} RankedBlock
 */

/** Takes the fields of a block, each of which is bounded, from its front. */
class Fields {
  /** @param {Uint8Array} bytes */
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  /** @param {number} length @returns {Uint8Array} */
  take(length) {
    rule(length <= this.bytes.length - this.at, CODE, "the block ends inside of a field");
    this.at += length;
    return this.bytes.subarray(this.at - length, this.at);
  }

  /** @returns {number} */
  byte() {
    return this.take(1)[0];
  }

  /** LEB128. What is above 2^53 is of no use to anyone, but for L. @returns {bigint} */
  bigNumber() {
    let number = 0n;
    for (let place = 0n; ; place += 1n) {
      const byte = this.byte();
      rule(place < 9n, CODE, "a number of more than 63 bits");
      number |= BigInt(byte & 127) << (7n * place);
      if (byte < 128) {
        rule(byte > 0 || place === 0n, CODE, "a number in more bytes than it takes");
        return number;
      }
    }
  }

  /** @returns {number} a number that is compared with a bound, so that it may be rounded if it is huge */
  number() {
    return Number(this.bigNumber());
  }
}

/** @param {Uint8Array} bits @param {number} i @returns {number} */
function bit(bits, i) {
  return (bits[i >> 3] >> (i & 7)) & 1;
}

/** @param {Uint8Array} bits @returns {number} how many are 1 */
function ones(bits) {
  let found = 0;
  for (const byte of bits) {
    for (let rest = byte; rest > 0; rest &= rest - 1) {
      found += 1;
    }
  }
  return found;
}

/**
 * SD417.
 * @param {Uint8Array} bytes BLOCK
 * @param {{words: number, first: number, count: number}} row one that is not empty
 * @param {string} dtype that of the tensor
 * @returns {RankedBlock}
 */
export function readRanked(bytes, { words, first, count }, dtype) {
  const fields = new Fields(bytes);
  const length = fields.bigNumber();
  const classes = readClasses(fields, count, EXPONENTS[dtype].most);
  const elements = readElements(fields, length, words, first);
  checkSizes(classes, elements.length);
  const signed = classes.reduce((sum, { vcode, count: own }) => sum + (vcode === NEW_WORDS ? 0 : own), 0);
  const signs = fields.take(Math.ceil(signed / 8));
  rule(spareBitsAreZero(signs, signed), CODE, "a spare sign bit is set");
  for (const each of classes) {
    readIndex(fields.take(each.size), each, elements.length);
  }
  const symbols = classes.map((each) => readValues(fields, each));
  const exceptions = fields.take(bytes.length - fields.at);
  rule(exceptions.length % 2 === 0, CODE, "half an exception");
  const state = { signs, exceptions, sign: 0, exception: 0 };
  classes.forEach((each, k) => readDifferences(symbols[k], each, state));
  rule(2 * state.exception === exceptions.length, CODE, "more exceptions than symbols for them");
  return { first, words, elements, classes };
}

/** @param {Fields} fields @param {number} count @param {number} most the greatest exponent @returns {Class[]} */
function readClasses(fields, count, most) {
  const number = fields.byte();
  /** @type {Class[]} */
  const classes = [];
  let below = -1;
  for (let k = 0; k < number; k += 1) {
    const [lo, hi, codes] = fields.take(3);
    const [icode, vcode, flat] = [codes >> 4, codes & 15, lo === 255 && hi === 0];
    rule(icode <= 1 && vcode <= NEW_WORDS, CODE, `codes ${icode} and ${vcode}`);
    rule(flat ? icode === 0 && k === number - 1 : below < lo && lo <= hi && hi <= most, CODE, `a class of ${lo} to ${hi}`);
    below = hi;
    classes.push({
      lo, hi, flat, bitmask: icode === 1, vcode, count: 0, size: 0, marks: new Uint8Array(0), ranks: new Uint32Array(0),
      differences: new Int32Array(0), words: new Uint16Array(0),
    });
  }
  let sum = 0;
  for (const each of classes) {
    each.count = fields.number();
    each.size = fields.number();
    rule(each.count >= 1, CODE, "a class without entries");
    sum += each.count;
  }
  rule(sum === count, CODE, `classes of ${sum} entries for a count of ${count}`);
  return classes;
}

/** @param {Fields} fields @param {bigint} stated L @param {number} words @param {number} first @returns {Uint32Array} */
function readElements(fields, stated, words, first) {
  const all = Uint32Array.from({ length: words }, (_, i) => i);
  if (stated === 0n) {
    return all;
  }
  const length = Number(stated < MOST_ROW ? stated : MOST_ROW);
  const start = Math.floor(first / length);
  const rows = Math.floor((first + words - 1) / length) - start + 1;
  const live = fields.take(Math.ceil(rows / 8));
  rule(spareBitsAreZero(live, rows), CODE, "a spare bit of the rows is set");
  return all.filter((i) => bit(live, Math.floor((first + i) / length) - start) === 1);
}

/**
 * The bytes of each IDX, and the elements that the classes have at least.
 * @param {Class[]} classes
 * @param {number} elements
 */
function checkSizes(classes, elements) {
  let least = 0;
  for (const { bitmask, flat, count, size } of classes) {
    const [low, high] = bitmask ? [1, Math.ceil(elements / 8)] : [count, count + Math.floor(elements / 255)];
    rule(size >= low && size <= high, CODE, `ranks of ${size} bytes, expected ${low} to ${high}`);
    if (!flat) {
      least += bitmask ? Math.max(count, 8 * size - 7) : count;
    }
  }
  rule(least <= elements, CODE, `the classes have more than ${elements} elements`);
}

/** @param {Uint8Array} bytes IDX @param {Class} each @param {number} elements */
function readIndex(bytes, each, elements) {
  if (each.bitmask) {
    each.marks = bytes;
    rule(ones(bytes) === each.count, CODE, `another number of bits than ${each.count}`);
  } else {
    each.ranks = sumGaps(readGaps(bytes, each.count, CODE), elements, CODE);
  }
}

/**
 * The values of a class, as far as EXC is not asked for: new words; or symbols, which are returned.
 * @param {Fields} fields
 * @param {Class} each
 * @returns {Uint8Array}
 */
function readValues(fields, each) {
  const { count, vcode } = each;
  if (vcode === NEW_WORDS) {
    const [high, low] = [fields.take(count), fields.take(count)];
    each.words = Uint16Array.from(high, (byte, i) => ((low[i] & 128) << 8) | (byte << 7) | (low[i] & 127));
    return new Uint8Array(0);
  }
  const bits = WIDTHS[vcode];
  const packed = fields.take(Math.ceil((count * bits) / 8));
  rule(spareBitsAreZero(packed, count * bits), CODE, "a spare bit of a symbol is set");
  return Uint8Array.from({ length: count }, (_, i) => (packed[(i * bits) >> 3] >> ((i * bits) & 7)) & (2 ** bits - 1));
}

/**
 * @param {Uint8Array} symbols none of a class of new words
 * @param {Class} each
 * @param {{signs: Uint8Array, exceptions: Uint8Array, sign: number, exception: number}} state how far these are used
 */
function readDifferences(symbols, each, state) {
  const top = 2 ** WIDTHS[each.vcode] - 1;
  const items = state.exceptions.length / 2;
  each.differences = Int32Array.from(symbols, (symbol) => {
    let a = symbol;
    if (symbol === top) {
      rule(state.exception < items, CODE, "fewer exceptions than symbols for them");
      a += state.exceptions[state.exception] + 256 * state.exceptions[items + state.exception];
      state.exception += 1;
    }
    const negative = bit(state.signs, state.sign) === 1;
    state.sign += 1;
    rule(a < MOST || (negative && a === MOST), CODE, `a magnitude of ${a}`);
    return negative ? -1 - a : a + 1;
  });
}

/**
 * SD418.
 * @param {RankedBlock} block
 * @param {Uint16Array} base the words of the whole domain
 * @param {string} dtype
 * @returns {{indices: number[], words: Uint16Array}} indices of the domain, ascending, and differences
 */
export function withBase({ first, elements, classes }, base, dtype) {
  const { shift, most } = EXPONENTS[dtype];
  const exponents = Uint8Array.from(elements, (i) => (base[first + i] >> shift) & most);
  const listed = classes.filter(({ flat }) => !flat);
  /** @type {[number, number][]} */
  const entries = [];
  for (const each of classes) {
    const within = (/** @type {number} */ j) => each.flat || (each.lo <= exponents[j] && exponents[j] <= each.hi);
    const members = Uint32Array.from(elements.keys()).filter(within);
    const ranks = each.bitmask ? readBitmask(each.marks, members.length) : each.ranks;
    ranks.forEach((rank, k) => {
      rule(rank < members.length, BASE_CODE, `rank ${rank} of ${members.length} elements`);
      const e = exponents[members[rank]];
      rule(!each.flat || listed.every(({ lo, hi }) => e < lo || e > hi), BASE_CODE, "an element of a class in FLAT");
      const index = first + elements[members[rank]];
      const difference = each.vcode === NEW_WORDS ? each.words[k] - base[index] : each.differences[k];
      rule(difference !== 0, BASE_CODE, "a new word that is the old one");
      entries.push([index, difference]);
    });
  }
  entries.sort(([a], [b]) => a - b);
  const words = /** @type {Uint16Array} */ (newWords(2, entries.length));
  // A typed array takes a negative number modulo 2^16.
  words.set(entries.map(([, difference]) => difference));
  return { indices: entries.map(([index]) => index), words };
}

/** @param {Uint8Array} marks @param {number} size @returns {number[]} the ranks of the bits that are 1 */
function readBitmask(marks, size) {
  rule(marks.length === Math.ceil(size / 8) && spareBitsAreZero(marks, size), BASE_CODE, `bits for ${size} elements`);
  return Array.from({ length: size }, (_, i) => i).filter((i) => bit(marks, i) === 1);
}
