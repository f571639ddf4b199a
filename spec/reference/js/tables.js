/**
 * Tables: SD301 to SD305 and SD307 (sections 3.4 and 3.5).
 */

import { hex, readU32, same } from "./bytes.js";
import { indexCodec, valueCodec } from "./codecs.js";
import { b3, segmentCount, tensorDigest } from "./digests.js";
import { sameShape, wordCount } from "./dtypes.js";
import { isSparse, place } from "./parts.js";
import { rule } from "./rules.js";

/**
 * @typedef {import("./schema.js").Manifest} Manifest
 * @typedef {import("./schema.js").Shaped} Shaped
 * @typedef {import("./schema.js").TensorRecord} TensorRecord
 * @typedef {import("./parts.js").Placed} Placed
 *
 * One row of a block table: the block begins at word `first` of its domain and has `words` words.
 * @typedef {{first: number, words: number, count: number, encoded: number[], decoded: number[],
 *   checksums: Uint8Array[]}} Row
 *
 * A part with what the tables say about it: the rows of a coded part, the segment digests of the other end of a copy.
 * @typedef {Placed & {rows: Row[], copied: Uint8Array | null}} TabledPart
 *
 * A record with its tables: the segment digests of its ends, null where it has none.
 * @typedef {{record: TensorRecord, base: Uint8Array | null, target: Uint8Array | null,
 *   parts: TabledPart[]}} TabledRecord
 *
 * @typedef {{untouched: Map<string, Uint8Array>, records: TabledRecord[]}} Tables
 */

/** @param {Placed} placed @returns {number} streams of a block */
function streamCount({ part, width }) {
  return indexCodec(part).streams + valueCodec(part).streams(width);
}

/** @param {Placed} placed @returns {number} */
function blockCount({ part, domain }) {
  return Math.ceil(domain / 2 ** part.block);
}

/** @param {Shaped | null} tensor @returns {number} */
function digestBytes(tensor) {
  return tensor === null ? 0 : 32 * segmentCount(wordCount(tensor));
}

/**
 * @param {TensorRecord} record
 * @param {Placed} placed
 * @returns {number} the bytes of a part in the tables
 */
function partBytes(record, placed) {
  const { part } = placed;
  if (part.coded) {
    return blockCount(placed) * (4 + 16 * streamCount(placed));
  }
  if (part.from !== null) {
    return digestBytes(record.target);
  }
  return part.to === null ? 0 : digestBytes(record.base);
}

/**
 * SD301. Nothing has been taken apart yet: a manifest may state 2^48 words, and the file be short.
 * @param {Manifest} manifest
 * @param {number} length
 */
function checkLength(manifest, length) {
  let expected = 32 * manifest.untouched.length;
  for (const record of manifest.tensors) {
    expected += digestBytes(record.base) + digestBytes(record.target);
    for (const placed of place(record)) {
      expected += partBytes(record, placed);
    }
    // Every summand is exact, and so is the sum as long as it is below the length of a file.
    rule(expected <= length, "SD301", `tables of ${length} bytes are too short`);
  }
  rule(expected === length, "SD301", `tables of ${length} bytes, expected ${expected}`);
}

/** Takes pieces from the front of the tables. */
class Cursor {
  /** @param {Uint8Array} bytes */
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  /** @param {number} length @returns {Uint8Array} */
  take(length) {
    this.at += length;
    return this.bytes.subarray(this.at - length, this.at);
  }
}

/** @param {Cursor} cursor @param {Placed} placed @returns {Row[]} */
function takeRows(cursor, placed) {
  const size = 2 ** placed.part.block;
  const streams = streamCount(placed);
  return Array.from({ length: blockCount(placed) }, (_, i) => {
    const row = cursor.take(4 + 16 * streams);
    const starts = Array.from({ length: streams }, (_stream, j) => 4 + 16 * j);
    return {
      first: i * size,
      words: Math.min(size, placed.domain - i * size),
      count: readU32(row, 0),
      encoded: starts.map((at) => readU32(row, at)),
      decoded: starts.map((at) => readU32(row, at + 4)),
      checksums: starts.map((at) => row.subarray(at + 8, at + 16)),
    };
  });
}

/** @param {Cursor} cursor @param {TensorRecord} record @returns {TabledRecord} */
function takeRecord(cursor, record) {
  const base = record.base === null ? null : cursor.take(digestBytes(record.base));
  const target = record.target === null ? null : cursor.take(digestBytes(record.target));
  const parts = place(record).map((placed) => ({
    ...placed,
    rows: placed.part.coded ? takeRows(cursor, placed) : [],
    copied: placed.part.coded ? null : cursor.take(partBytes(record, placed)),
  }));
  return { record, base, target, parts };
}

/** @param {TabledPart} placed SD303 */
function checkRowCounts({ part, rows }) {
  let all = 0;
  for (const { count, words } of rows) {
    rule(isSparse(part) ? count <= words : count === words, "SD303", `a count of ${count} in ${words} words`);
    all += count;
  }
  rule(all === part.nnz, "SD303", `counts of ${all}, nnz ${part.nnz}`);
}

/** @param {TabledPart} placed SD304 */
function checkRowLengths({ part, rows, width }) {
  const [index, value] = [indexCodec(part), valueCodec(part)];
  for (const { count, words, encoded, decoded } of rows) {
    rule(encoded.every((length, i) => length <= decoded[i]), "SD304", "a frame is longer than its content");
    if (count === 0) {
      rule(decoded.every((length) => length === 0), "SD304", "an empty block has bytes");
      continue;
    }
    const [indices, values] = [decoded.slice(0, index.streams), decoded.slice(index.streams)];
    rule(index.allows(indices, count, words), "SD304", `index streams of ${indices} bytes`);
    const held = index.held(count, words) ?? value.held(values, width);
    rule(held >= count && held <= words, "SD304", `${held} values`);
    rule(value.allows(values, held, width), "SD304", `value streams of ${values} bytes`);
    const stored = encoded.map((length, i) => length === decoded[i]);
    rule(index.id !== "raw" || stored.slice(0, index.streams).every(Boolean), "SD304", "compressed raw indices");
    rule(value.id !== "raw" || stored.slice(index.streams).every(Boolean), "SD304", "compressed raw values");
  }
}

/**
 * SD305.
 * @param {Manifest} manifest
 * @param {TabledPart[]} parts the coded ones
 * @param {number} length that of `sd.data`
 */
function checkFrames(manifest, parts, length) {
  // Lengths of frames are u32, and rows no more than the file has: these sums are exact.
  let all = 0;
  for (const { part, rows } of parts) {
    let sum = 0;
    for (const { encoded } of rows) {
      sum += encoded.reduce((a, b) => a + b, 0);
    }
    rule(sum === part.bytes, "SD305", `frames of ${sum} bytes, stated ${part.bytes}`);
    all += sum;
  }
  all += manifest.blobs.reduce((sum, blob) => sum + blob.bytes, 0);
  rule(all === length, "SD305", `frames of ${all} bytes, data of ${length}`);
}

/** @param {TabledRecord} tabled SD307 */
function checkChanges({ record, base, target, parts }) {
  const changes = (/** @type {string} */ side) => parts.some((placed) => placed.side === side && isSparse(placed.part));
  const expect = (/** @type {string} */ side, /** @type {Uint8Array} */ a, /** @type {Uint8Array} */ b) =>
    rule(same(a, b) !== changes(side), "SD307", `${record.name}: digests that ${changes(side) ? "are" : "differ"}`);
  if (base !== null && target !== null && parts.every((placed) => placed.side === "T")) {
    if (sameShape(record.base, record.target)) {
      expect("T", base, target);
    }
    return;
  }
  for (const { part, side, copied } of parts) {
    if (copied !== null && (part.from !== null || part.to !== null)) {
      expect(side, copied, /** @type {Uint8Array} */ (side === "D" ? base : target));
    }
  }
  if (base !== null && target !== null) {
    const ends = [tensorDigest(/** @type {Shaped} */ (record.base), base),
      tensorDigest(/** @type {Shaped} */ (record.target), target)];
    rule(!same(ends[0], ends[1]), "SD307", `${record.name}: D and N lead to the same tensor`);
  }
}

/**
 * @param {Manifest} manifest
 * @param {Uint8Array} bytes those of `sd.tables`
 * @param {number} dataLength
 * @returns {Tables}
 */
export function readTables(manifest, bytes, dataLength) {
  checkLength(manifest, bytes.length);
  rule(hex(b3(bytes)) === manifest.tables, "SD302", "the tables have another digest");
  const cursor = new Cursor(bytes);
  const untouched = new Map(manifest.untouched.map((name) => [name, cursor.take(32)]));
  const records = manifest.tensors.map((record) => takeRecord(cursor, record));
  const parts = records.flatMap((tabled) => tabled.parts).filter(({ part }) => part.coded);
  parts.forEach(checkRowCounts);
  parts.forEach(checkRowLengths);
  checkFrames(manifest, parts, dataLength);
  return { untouched, records };
}

/**
 * SD307, which comes after SD306.
 * @param {TabledRecord[]} records
 */
export function checkAllChanges(records) {
  records.forEach(checkChanges);
}
