/**
 * What stands beside the records, as far as the manifest tells: SD213 to SD216 (sections 3.6 to 3.8).
 */

import { ascending } from "./bytes.js";
import { differIgnoringCase, isFileName } from "./names.js";
import { rule } from "./rules.js";

const MOST_BLOBS = 2 ** 16;
const MOST_BLOB = 2 ** 27;
const MOST_BLOB_BYTES = 2 ** 30;
const MOST_PARTS = 2 ** 16;
const WEIGHTS = ".safetensors";
const INDEX = ".safetensors.index.json";

/**
 * @typedef {import("./schema.js").Manifest} Manifest
 * @typedef {import("./schema.js").LayoutEnd} LayoutEnd
 * @typedef {import("./schema.js").CarriedFile} CarriedFile
 */

/**
 * SD213 to SD216.
 * @param {Manifest} manifest
 */
export function checkBeside(manifest) {
  checkBlobs(manifest);
  if (manifest.layout !== null) {
    checkLayoutEnd(manifest.layout.base, manifest.blobs);
    checkLayoutEnd(manifest.layout.target, manifest.blobs);
  }
  checkFiles(manifest);
  checkSet(manifest);
}

/** @param {Manifest} manifest */
function checkBlobs({ blobs }) {
  rule(blobs.length <= MOST_BLOBS, "SD213", `${blobs.length} blobs`);
  let all = 0;
  for (const { bytes, size } of blobs) {
    rule(size <= MOST_BLOB && bytes <= size, "SD213", `a blob of ${size} bytes in a frame of ${bytes}`);
    all += size;
  }
  rule(all <= MOST_BLOB_BYTES, "SD213", `blobs of ${all} bytes`);
}

/** @param {LayoutEnd | null} end @param {{size: number}[]} blobs */
function checkLayoutEnd(end, blobs) {
  if (end === null) {
    return;
  }
  const names = end.files.map((file) => file.name);
  rule(names.length >= 1 && ascending(names), "SD214", "no files, or they do not ascend");
  rule(names.every((name) => isFileName(name) && name.endsWith(WEIGHTS)), "SD214", "a name of a file");
  const used = end.files.map((file) => file.header);
  if (end.index !== null) {
    rule(isFileName(end.index.name) && end.index.name.endsWith(INDEX), "SD214", "the name of the index");
    names.push(end.index.name);
    used.push(end.index.blob);
  }
  rule(differIgnoringCase(names), "SD214", "two names differ in case only");
  rule(used.every((blob) => blob < blobs.length), "SD214", "there is no such blob");
  const total = used.reduce((sum, blob) => sum + blobs[blob].size, 0);
  rule(total <= MOST_BLOB_BYTES, "SD214", `headers and index of ${total} bytes`);
}

/** @param {Manifest} manifest */
function checkFiles({ files, blobs }) {
  const names = files.map((file) => file.name);
  rule(ascending(names) && differIgnoringCase(names), "SD215", "the carried files do not ascend, or differ in case only");
  for (const { name, base, target } of files) {
    const lower = name.toLowerCase();
    rule(isFileName(name) && !lower.endsWith(WEIGHTS) && !lower.endsWith(INDEX), "SD215", `the name ${name}`);
    // The content decides: whether it is carried is no difference.
    rule(base?.digest !== target?.digest, "SD215", `the ends of ${name} do not differ`);
    rule(target === null || target.blob !== null, "SD215", `the target of ${name} is not carried`);
    for (const end of [base, target]) {
      if (end !== null && end.blob !== null) {
        rule(blobs[end.blob]?.size === end.size, "SD215", `the blob of ${name} is not there, or of another size`);
      }
    }
  }
  for (const side of /** @type {const} */ (["base", "target"])) {
    // One blob may be the content of many files.
    const total = files.reduce((sum, file) => sum + (file[side]?.blob == null ? 0 : (file[side]?.size ?? 0)), 0);
    rule(total <= MOST_BLOB_BYTES, "SD215", `carried files of ${total} bytes`);
  }
}

/** @param {Manifest} manifest */
function checkSet({ set, tensors, untouched, blobs, layout, files }) {
  if (set === null) {
    return;
  }
  if (set.part === 0) {
    const names = set.parts.map((part) => part.name);
    rule(names.length >= 1 && names.length <= MOST_PARTS, "SD216", `a set of ${names.length} part files`);
    rule(names.every(isFileName) && differIgnoringCase(names), "SD216", "the names of the part files");
    rule(tensors.length === 0, "SD216", "a root with records");
    return;
  }
  rule(set.parts.length === 0 && set.part <= MOST_PARTS, "SD216", "a part file with part files, or too high a number");
  rule(tensors.length >= 1, "SD216", "a part file without records");
  const bare = untouched.length === 0 && blobs.length === 0 && layout === null && files.length === 0;
  rule(bare, "SD216", "a part file with untouched names, blobs, layout or files");
}
