/**
 * Blobs: SD414 to SD416 (sections 3.6 and 3.7).
 */

import { hex } from "./bytes.js";
import { b3 } from "./digests.js";
import { baseName } from "./names.js";
import { rule } from "./rules.js";
import { readWeightsHeader } from "./weights_header.js";
import { sameShape } from "./dtypes.js";
import { unframe } from "./zstd.js";

/**
 * @typedef {import("./schema.js").Manifest} Manifest
 * @typedef {import("./schema.js").TensorRecord} TensorRecord
 * @typedef {import("./schema.js").Shaped} Shaped
 */

/**
 * @param {Manifest} manifest
 * @param {TensorRecord[]} records those of the delta; of the root of a set, the merged ones
 * @param {Uint8Array} data `sd.data`; the frames of the blobs end it
 * @returns {Uint8Array[]} the contents of the blobs
 */
export function readBlobs(manifest, records, data) {
  let at = data.length - manifest.blobs.reduce((sum, blob) => sum + blob.bytes, 0);
  const contents = manifest.blobs.map(({ bytes, size, digest }) => {
    const frame = data.subarray(at, at + bytes);
    at += bytes;
    rule(hex(b3(frame)) === digest, "SD414", "the frame of a blob has another digest");
    return unframe(frame, size, "SD414");
  });
  for (const side of /** @type {("base" | "target")[]} */ (["base", "target"])) {
    const end = manifest.layout?.[side] ?? null;
    if (end !== null) {
      checkLayout(end.files.map((file) => contents[file.header]), side, manifest, records);
    }
  }
  for (const { name, base, target } of manifest.files) {
    for (const end of [base, target]) {
      if (end !== null && end.blob !== null) {
        rule(hex(b3(contents[end.blob])) === end.digest, "SD416", `the content of ${name} has another digest`);
      }
    }
  }
  return contents;
}

/**
 * SD415 for one end.
 * @param {Uint8Array[]} headers
 * @param {"base" | "target"} side
 * @param {Manifest} manifest
 * @param {TensorRecord[]} records
 */
function checkLayout(headers, side, manifest, records) {
  /** @type {Map<string, Shaped>} */
  const found = new Map();
  for (const header of headers) {
    for (const tensor of readWeightsHeader(header, "SD415").tensors) {
      rule(!found.has(tensor.name), "SD415", `tensor ${tensor.name} is in two files`);
      found.set(tensor.name, tensor);
    }
  }
  const there = records.filter((record) => record[side] !== null);
  for (const record of there) {
    const name = side === "base" ? baseName(record) : record.name;
    const fits = sameShape(found.get(name) ?? null, record[side]);
    rule(fits, "SD415", `tensor ${name} is missing, or has another dtype or shape`);
    found.delete(name);
  }
  // What is left has to be the untouched tensors. A lean delta does not name them, but they have no name of a record.
  const taken = new Set(records.flatMap((record) => [record.name, baseName(record)]));
  const left = [...found.keys()];
  if (manifest.lean) {
    rule(left.every((name) => !taken.has(name)), "SD415", "a tensor that this end does not have");
  } else {
    const all = left.length === manifest.untouched.length && manifest.untouched.every((name) => found.has(name));
    rule(all, "SD415", "other tensors than those of this end");
  }
}
