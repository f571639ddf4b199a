/**
 * The two ends of a delta, as its own tables tell: SD306 and SD308 (section 4).
 */

import { hex, same } from "./bytes.js";
import { fingerprint, tensorDigest } from "./digests.js";
import { baseName } from "./names.js";
import { rule } from "./rules.js";

/**
 * @typedef {import("./schema.js").Manifest} Manifest
 * @typedef {import("./schema.js").Shaped} Shaped
 * @typedef {import("./tables.js").TabledRecord} TabledRecord
 * @typedef {{record: TabledRecord["record"], base: Uint8Array | null, target: Uint8Array | null}} Arrow
 */

/**
 * @param {Arrow[]} records
 * @param {Map<string, Uint8Array>} untouched tensor digests
 * @returns {{base: Map<string, Uint8Array>, target: Map<string, Uint8Array>}} the tensor digests of both ends
 */
export function endDigests(records, untouched) {
  const ends = { base: new Map(untouched), target: new Map(untouched) };
  for (const { record, base, target } of records) {
    if (record.base !== null && base !== null) {
      ends.base.set(baseName(record), tensorDigest(record.base, base));
    }
    if (record.target !== null && target !== null) {
      ends.target.set(record.name, tensorDigest(record.target, target));
    }
  }
  return ends;
}

/**
 * SD306.
 * @param {Manifest} manifest
 * @param {TabledRecord[]} records
 * @param {Map<string, Uint8Array>} untouched
 */
export function checkFingerprints(manifest, records, untouched) {
  const ends = endDigests(records, untouched);
  rule(hex(fingerprint(ends.base)) === manifest.base, "SD306", "the base fingerprint is another one");
  rule(hex(fingerprint(ends.target)) === manifest.target, "SD306", "the target fingerprint is another one");
}

/**
 * SD308.
 * @param {TabledRecord[]} records all that are there
 * @param {Map<string, Uint8Array>} untouched
 * @param {{lean: boolean, alone: boolean}} known `alone` for a part file that is read without its set
 */
export function checkCopies(records, untouched, { lean, alone }) {
  const ends = endDigests(records, untouched);
  const names = new Set(records.map(({ record }) => record.name));
  const baseNames = new Set(records.map(({ record }) => baseName(record)));
  for (const { record, parts } of records) {
    for (const { part, copied } of parts) {
      const other = part.from ?? part.to;
      if (copied === null || other === null) {
        continue;
      }
      const known = (part.from === null ? ends.target : ends.base).get(other);
      if (known === undefined) {
        // A record of that name (at that end) without a tensor is the only one. Without it, another part file may have
        // the tensor; or it is an untouched one, which a lean delta does not name, and which has no name of a record.
        const [own, opposite] = part.from === null ? [names, baseNames] : [baseNames, names];
        const open = !own.has(other) && (alone || (lean && !opposite.has(other)));
        rule(open, "SD308", `${record.name}: there is no tensor ${other}`);
        continue;
      }
      const tensor = /** @type {Shaped} */ (part.from === null ? record.base : record.target);
      rule(same(known, tensorDigest(tensor, copied)), "SD308", `${record.name}: ${other} is another tensor`);
    }
  }
}
