/**
 * The files of an end, byte for byte, from its tensors (section 3.6).
 */

import { createHash } from "node:crypto";

import { concat } from "./bytes.js";
import { sameShape } from "./dtypes.js";
import { rule } from "./rules.js";
import { readWeightsHeader } from "./weights_header.js";

/**
 * @param {import("./delta.js").Delta} delta
 * @param {"base" | "target"} side
 * @param {import("./apply.js").Checkpoint} checkpoint that end
 * @returns {Map<string, Uint8Array> | null} the files by name; null if the layout of this end is not recorded
 */
export function layOut({ manifest, blobs }, side, checkpoint) {
  const end = manifest.layout?.[side] ?? null;
  if (end === null) {
    return null;
  }
  const files = new Map();
  for (const { name, header, sha256 } of end.files) {
    // The header names tensors of that end only (SD415); those that are untouched in a lean delta are seen here first.
    const { tensors } = readWeightsHeader(blobs[header], "SD415");
    const bytes = concat([blobs[header], ...tensors.map((tensor) => {
      const found = checkpoint.get(tensor.name);
      rule(sameShape(found ?? null, tensor), "SD502", `${name} has another tensor ${tensor.name}`);
      return /** @type {import("./apply.js").Tensor} */ (found).bytes;
    })]);
    const digest = createHash("sha256").update(bytes).digest("hex");
    rule(sha256 === null || digest === sha256, "SD502", `${name} has another SHA-256`);
    files.set(name, bytes);
  }
  if (end.index !== null) {
    files.set(end.index.name, blobs[end.index.blob]);
  }
  return files;
}

/**
 * The carried files of an end (section 3.7): the content of each, or null for one that is not there at that end. One
 * that is there, but whose content is not carried, is left out, and has to be left alone.
 * @param {import("./delta.js").Delta} delta
 * @param {"base" | "target"} side
 * @returns {Map<string, Uint8Array | null>}
 */
export function carriedFiles({ manifest, blobs }, side) {
  const files = new Map();
  for (const file of manifest.files) {
    const end = file[side];
    if (end === null) {
      files.set(file.name, null);
    } else if (end.blob !== null) {
      files.set(file.name, blobs[end.blob]);
    }
  }
  return files;
}
