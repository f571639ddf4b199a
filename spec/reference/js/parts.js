/**
 * Records and their parts, as far as the manifest tells: SD208 to SD212 (sections 2, 5 and 6).
 */

import { checkCodecs } from "./combinations.js";
import { MOST_WORDS, byteLength, sameShape, wordBytes, wordCount } from "./dtypes.js";
import { rule } from "./rules.js";

/**
 * @typedef {import("./schema.js").Part} Part
 * @typedef {import("./schema.js").Shaped} Shaped
 * @typedef {import("./schema.js").TensorRecord} TensorRecord
 * @typedef {import("./schema.js").Manifest} Manifest
 *
 * A part, and what it is for: `domain` is the number of words that it covers, `width` the bytes of its values.
 * `side` tells the parts of a record that drop its base (D) from those that make its target (N); all others are "T".
 * `dtype` is that of the tensor.
 * @typedef {{part: Part, side: "D" | "N" | "T", domain: number, width: number, dtype: string}} Placed
 */

/** The feature that a reader of `ranked` has. */
export const RANKED = "ranked@1.1";

const OPS = ["difference", "replace", "add", "new", "drop", "resize"];
const FLOATS = ["F16", "BF16", "F32", "F64"];
const SPARSE = new Set(["difference", "replace", "add"]);

// The sequences of section 5. A part is written as its op, "+" if it is coded and "-" if it is bare, and then the
// copied name, if it has one: `new-from`, `drop-to`. An add is always coded.
const TWO_ENDS = /^(?:difference\+ ?)?(?:replace\+ ?)?$/;
const ADD = /^add\+$/;
const RESIZE = /^resize[-+](?: difference\+)?(?: replace\+)?$/;
const DROP = /^(?:(?:difference\+ )?drop-to|drop[-+])/;
const NEW = /(?:new\+|new-from(?: difference\+)?(?: replace\+)?)$/;

/** @param {Part} part @returns {boolean} whether it has entries, and not all words of its domain */
export function isSparse(part) {
  return SPARSE.has(part.op);
}

/** @param {Part} part @returns {string} */
function spelled(part) {
  return `${part.op}${part.coded ? "+" : "-"}${part.from === null ? "" : "from"}${part.to === null ? "" : "to"}`;
}

/**
 * SD208 for one end.
 * @param {string} name
 * @param {Shaped | null} tensor
 */
function checkShape(name, tensor) {
  if (tensor === null) {
    return;
  }
  rule(tensor.shape.length <= 64, "SD208", `${name} has ${tensor.shape.length} dimensions`);
  const bytes = byteLength(tensor.dtype, tensor.shape);
  rule(bytes !== null, "SD208", `${name}: ${tensor.dtype} is unknown, or its size no whole number of bytes`);
  const most = BigInt(MOST_WORDS) * BigInt(wordBytes(tensor.dtype));
  rule(/** @type {bigint} */ (bytes) <= most, "SD208", `${name} has more than 2^48 words`);
}

/**
 * SD209 for one record.
 * @param {TensorRecord} record
 */
function checkParts(record) {
  for (const part of record.parts) {
    rule(OPS.includes(part.op), "SD209", `${record.name}: ${part.op} is no op`);
    const isAdd = part.op === "add";
    rule((part.dtype !== null) === isAdd && (part.scale !== null) === isAdd, "SD209", `${record.name}: dtype or scale`);
    rule(!isAdd || FLOATS.includes(part.dtype ?? ""), "SD209", `${record.name}: add of ${part.dtype}`);
    // The exponent of an infinity or a NaN has all its 11 bits set.
    const exponent = Number.parseInt((part.scale ?? "0000").slice(0, 3), 16) & 0x7ff;
    rule(exponent !== 0x7ff, "SD209", `${record.name}: the scale is not finite`);
  }
  const sequence = record.parts.map(spelled).join(" ");
  rule(isSequence(record, sequence), "SD209", `${record.name}: parts ${sequence || "none"} for these ends`);
}

/** @param {TensorRecord} record @param {string} sequence @returns {boolean} */
function isSequence(record, sequence) {
  const { base, target, from } = record;
  if (base === null || target === null) {
    return (base !== null && fullMatch(DROP, sequence)) || (target !== null && fullMatch(NEW, sequence));
  }
  if (sameShape(base, target)) {
    if (TWO_ENDS.test(sequence) && (sequence !== "" || from !== null)) {
      return true;
    }
    if (ADD.test(sequence) && FLOATS.includes(base.dtype)) {
      return true;
    }
  }
  if (RESIZE.test(sequence) && isResize(base, target)) {
    // Only words that are cut can be forgotten.
    return sequence.startsWith("resize+") || wordCount(target) < wordCount(base);
  }
  // D, a space, N.
  const dropped = DROP.exec(sequence)?.[0] ?? "";
  const rest = sequence.slice(dropped.length + 1);
  return from === null && dropped !== "" && sequence[dropped.length] === " " && fullMatch(NEW, rest);
}

/** @param {RegExp} form @param {string} sequence @returns {boolean} */
function fullMatch(form, sequence) {
  return form.exec(sequence)?.[0] === sequence;
}

/** @param {Shaped} a @param {Shaped} b @returns {boolean} whether they differ in the first dimension only */
function isResize(a, b) {
  return a.dtype === b.dtype && a.shape.length >= 1 && a.shape.length === b.shape.length
    && a.shape[0] !== b.shape[0] && a.shape.slice(1).every((d, i) => d === b.shape[i + 1]);
}

/**
 * The parts of a record with their domains.
 * @param {TensorRecord} record one that SD209 allows
 * @returns {Placed[]}
 */
export function place(record) {
  const { base, target, parts } = record;
  const [before, after] = [base, target].map((tensor) => (tensor === null ? 0 : wordCount(tensor)));
  const drops = parts.findIndex((part) => part.op === "drop");
  const news = parts.findIndex((part) => part.op === "new");
  return parts.map((part, i) => {
    const side = i <= drops ? "D" : news >= 0 ? "N" : "T";
    const { dtype } = /** @type {Shaped} */ (side === "D" ? base : target);
    const width = wordBytes(part.op === "add" ? /** @type {string} */ (part.dtype) : dtype);
    if (side === "T") {
      // After a resize, only the words that both ends have are left to the other parts.
      const domain = part.op === "resize" ? Math.abs(after - before) : Math.min(before, after);
      return { part, side, width, dtype, domain };
    }
    return { part, side, width, dtype, domain: side === "D" ? before : after };
  });
}

/**
 * SD211 for one record.
 * @param {TensorRecord} record
 * @returns {bigint} its entries
 */
function checkCounts(record) {
  let all = 0n;
  const perSide = { D: 0n, N: 0n, T: 0n };
  for (const { part, side, domain } of place(record)) {
    if (isSparse(part)) {
      perSide[side] += BigInt(part.nnz);
      all += BigInt(part.nnz);
      rule(part.nnz >= 1 && perSide[side] <= BigInt(domain), "SD211", `${record.name}: nnz of ${part.op}`);
    } else {
      rule(!part.coded || part.nnz === domain, "SD211", `${record.name}: nnz of ${part.op} is not ${domain}`);
    }
  }
  return all;
}

/** @param {Part} part @returns {boolean} whether it can be read with its base only */
export function isRanked(part) {
  return part.coded && part.index.get("id") === "ranked";
}

/** @param {TensorRecord[]} records @returns {boolean} whether a delta of them can be reverted */
export function isInvertible(records) {
  return records.every(({ parts }) => parts.every((part) => {
    const forgets = !part.coded && (part.op === "resize" || (part.op === "drop" && part.to === null));
    return part.op !== "replace" && part.op !== "add" && !forgets && !isRanked(part);
  }));
}

/**
 * SD217.
 * @param {Manifest} manifest
 */
export function checkCompact({ tensors, version, profile, must_understand: features }) {
  if (tensors.some(({ parts }) => parts.some(isRanked))) {
    rule(version !== "1.0", "SD217", `ranked in version ${version}`);
    rule(profile === "compact", "SD217", `ranked in profile ${profile}`);
    rule(features.includes(RANKED), "SD217", `ranked, and ${RANKED} is not in must_understand`);
  }
}

/**
 * SD208 to SD212.
 * @param {Manifest} manifest
 */
export function checkRecords(manifest) {
  for (const record of manifest.tensors) {
    checkShape(record.name, record.base);
    checkShape(record.name, record.target);
  }
  manifest.tensors.forEach(checkParts);
  for (const record of manifest.tensors) {
    place(record).filter(({ part }) => part.coded).forEach(({ part, dtype }) => checkCodecs(record.name, part, dtype));
  }
  const entries = manifest.tensors.map(checkCounts).reduce((a, b) => a + b, 0n);
  const isRoot = manifest.set !== null && manifest.set.part === 0;
  rule(isRoot || entries === BigInt(manifest.nnz), "SD211", `${entries} entries, not ${manifest.nnz}`);
  rule(isRoot || manifest.invertible === isInvertible(manifest.tensors), "SD212", "invertible is something else");
}
