/**
 * Blocks: SD401 to SD408, SD411 to SD413 and SD417 (section 6).
 */

import { same } from "./bytes.js";
import { indexCodec, valueCodec } from "./codecs.js";
import { b3 } from "./digests.js";
import { newWords } from "./dtypes.js";
import { isSparse } from "./parts.js";
import { readRanked } from "./ranked.js";
import { rule, withinMemory } from "./rules.js";
import { unframe } from "./zstd.js";

/**
 * @typedef {import("./dtypes.js").Words} Words
 * @typedef {import("./tables.js").Row} Row
 * @typedef {import("./tables.js").TabledPart} TabledPart
 *
 * What a coded part carries: the words, and for a sparse op the index of each. Indices reach 2^48, so they are float64.
 * @typedef {{indices: Float64Array | null, words: Words}} Carried
 */

/**
 * The streams of a block: SD401 for all of them, then SD402.
 * @param {Row} row
 * @param {Uint8Array} data `sd.data`
 * @param {number} start where the first frame of the block lies
 * @returns {Uint8Array[]}
 */
function readStreams(row, data, start) {
  let at = start;
  const frames = row.encoded.map((length) => {
    at += length;
    return data.subarray(at - length, at);
  });
  frames.forEach((frame, i) => {
    rule(same(b3(frame).subarray(0, 8), row.checksums[i]), "SD401", `the frame of ${frame.length} bytes at its place`);
  });
  return frames.map((frame, i) => unframe(frame, row.decoded[i], "SD402"));
}

/**
 * @param {TabledPart} placed
 * @param {Row} row one that is not empty
 * @param {Uint8Array[]} streams
 * @returns {{indices: Uint32Array, words: Words}} the entries; indices count from the first word of the block
 */
export function readBlock({ part, width }, row, streams) {
  const [index, value] = [indexCodec(part), valueCodec(part)];
  const [indexStreams, valueStreams] = [streams.slice(0, index.streams), streams.slice(index.streams)];
  const held = index.held(row.count, row.words) ?? value.held(row.decoded.slice(index.streams), width);
  const exact = part.op !== "difference";
  const indices = index.decode(indexStreams, { count: row.count, words: row.words, held, exact });
  const padded = index.id === "dense" || index.id === "range";
  if (!padded || exact) {
    rule(!padded || held === row.count, "SD405", `${held} values for a count of ${row.count}`);
    const words = value.decode(valueStreams, held, width);
    rule(exact || words.every((/** @type {any} */ word) => Boolean(word)), "SD408", "a value is 0");
    return { indices, words };
  }
  // Of zigzag, the symbols tell which values are 0; they are looked at before the exceptions.
  const marks = value.marks(valueStreams, held, width);
  const entries = indices.map((_, i) => i).filter((i) => Boolean(marks[i]));
  rule(entries.length === row.count, "SD405", `${entries.length} values other than 0, expected ${row.count}`);
  const ends = index.id === "dense" || (Boolean(marks[0]) && Boolean(marks[held - 1]));
  rule(ends, "SD405", "a run that begins or ends with padding");
  const words = value.decode(valueStreams, held, width);
  const picked = newWords(width, entries.length);
  entries.forEach((i, j) => {
    picked[j] = words[i];
  });
  return { indices: entries.map((i) => indices[i]), words: picked };
}

/**
 * All blocks of a part.
 * @param {TabledPart} placed a coded part
 * @param {Uint8Array} data
 * @param {number} start where its first frame lies
 * @returns {Carried}
 */
export function readPart(placed, data, start) {
  const { part, width, rows } = placed;
  const sparse = isSparse(part);
  const indices = withinMemory(() => new Float64Array(sparse ? part.nnz : 0));
  const words = withinMemory(() => newWords(width, part.nnz));
  let at = start;
  let filled = 0;
  for (const row of rows) {
    const streams = readStreams(row, data, at);
    at += row.encoded.reduce((a, b) => a + b, 0);
    if (row.count > 0) {
      const block = readBlock(placed, row, streams);
      words.set(/** @type {any} */ (block.words), filled);
      if (sparse) {
        block.indices.forEach((index, i) => {
          indices[filled + i] = row.first + index;
        });
      }
      filled += row.count;
    }
  }
  return { indices: sparse ? indices : null, words };
}

/**
 * All blocks of a part that is `ranked`, as far as they can be read without the base.
 * @param {TabledPart} placed
 * @param {Uint8Array} data
 * @param {number} start where its first frame lies
 * @returns {import("./ranked.js").RankedBlock[]} those with entries
 */
export function readRankedPart({ dtype, rows }, data, start) {
  const blocks = [];
  let at = start;
  for (const row of rows) {
    const [bytes] = readStreams(row, data, at);
    at += row.encoded[0];
    if (row.count > 0) {
      blocks.push(readRanked(bytes, row, dtype));
    }
  }
  return blocks;
}
