/**
 * A whole delta: all rules of section 9 in their order, of one file or of a set.
 */

import { readBlobs } from "./blobs.js";
import { readPart, readRankedPart } from "./blocks.js";
import { checkContent, checkDisjoint } from "./content.js";
import { checkCopies, checkFingerprints } from "./ends.js";
import { isRanked } from "./parts.js";
import { rule } from "./rules.js";
import { byName, isRoot, openFile, openParts } from "./sets.js";
import { checkAllChanges, readTables } from "./tables.js";

/** This reader holds everything in memory. */
const BUDGET = 2 ** 31;
/** What an entry takes here beside its streams: an index and a word. */
const ENTRY_BYTES = 16;
/** What a word of a ranked block takes until there is a base: its place among the elements. */
const WORD_BYTES = 8;

/**
 * @typedef {import("./content.js").ReadRecord} ReadRecord
 * @typedef {import("./schema.js").Manifest} Manifest
 * @typedef {import("./sets.js").Beside} Beside
 * @typedef {import("./sets.js").Opened} Opened
 * @typedef {import("./tables.js").TabledRecord} TabledRecord
 * @typedef {Opened & {tables: import("./tables.js").Tables}} Tabled
 *
 * @typedef {{manifest: Manifest, records: ReadRecord[], untouched: Map<string, Uint8Array>, blobs: Uint8Array[],
 *   complete: boolean}} Delta
 */

/**
 * Reads a delta and checks everything that can be checked without a checkpoint.
 * @param {Uint8Array} file a delta, the root of a set, or a part file alone
 * @param {Beside} [beside] where the part files of a root are
 * @returns {Delta} `complete` is false for a part file alone
 * @throws {import("./rules.js").RuleError} with the first rule that is broken
 */
export function readDelta(file, beside = () => null) {
  const first = openFile(file);
  const opened = isRoot(first.manifest) ? [first, ...openParts(first, beside)] : [first];
  const files = opened.map(readFileTables);
  const { manifest } = first;
  const { untouched } = files[0].tables;
  const tabled = merge(files.map(({ tables }) => tables.records));
  const alone = manifest.set !== null && !isRoot(manifest);
  if (!manifest.lean && !alone) {
    checkFingerprints(manifest, tabled, untouched);
  }
  checkAllChanges(tabled);
  checkCopies(tabled, untouched, { lean: manifest.lean, alone });
  checkBudget(files);
  const records = merge(files.filter((each) => !isRoot(each.manifest)).map(readRecords));
  if (isRoot(manifest)) {
    checkContent(manifest, records);
  }
  const blobs = readBlobs(manifest, records.map(({ record }) => record), first.container.data);
  return { manifest, records, untouched, blobs, complete: !alone };
}

/** @param {Opened} opened @returns {Tabled} SD301 to SD305 */
function readFileTables({ container, manifest }) {
  return { container, manifest, tables: readTables(manifest, container.tables, container.data.length) };
}

/**
 * @template {{record: {name: string}}} T
 * @param {T[][]} records those of each file
 * @returns {T[]}
 */
function merge(records) {
  return byName(records.flat(), ({ record }) => record.name);
}

/** @param {Tabled[]} files SD504 */
function checkBudget(files) {
  let work = 0;
  for (const { manifest, tables } of files) {
    work += manifest.blobs.reduce((sum, blob) => sum + blob.size, 0);
    for (const { part, rows } of tables.records.flatMap(({ parts }) => parts)) {
      const ranked = isRanked(part);
      for (const { decoded, count, words } of rows) {
        work += decoded.reduce((sum, length) => sum + length, ENTRY_BYTES * count);
        work += ranked && count > 0 ? WORD_BYTES * words : 0;
      }
      rule(work <= BUDGET, "SD504", `more work than ${BUDGET} bytes`);
    }
  }
}

/**
 * The 4xx of one file, but for its blobs.
 * @param {Tabled} file
 * @returns {ReadRecord[]}
 */
function readRecords({ container, manifest, tables }) {
  let at = 0;
  const records = tables.records.map((tabled) => ({
    ...tabled,
    parts: tabled.parts.map((placed) => {
      const start = at;
      at += placed.part.coded ? placed.part.bytes : 0;
      if (isRanked(placed.part)) {
        return { ...placed, carried: null, waiting: readRankedPart(placed, container.data, start) };
      }
      return { ...placed, carried: placed.part.coded ? readPart(placed, container.data, start) : null, waiting: null };
    }),
  }));
  records.forEach(checkDisjoint);
  checkContent(manifest, records);
  return records;
}
