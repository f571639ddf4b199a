/**
 * Sets: SD601 to SD603 (section 3.8).
 */

import { compareUtf8, hex } from "./bytes.js";
import { b3 } from "./digests.js";
import { readHeader } from "./header.js";
import { readManifest } from "./manifest.js";
import { checkDistinct } from "./names.js";
import { isInvertible } from "./parts.js";
import { RuleError, rule } from "./rules.js";

/**
 * @typedef {import("./header.js").Container} Container
 * @typedef {import("./schema.js").Manifest} Manifest
 *
 * A file whose 1xx and 2xx hold.
 * @typedef {{container: Container, manifest: Manifest}} Opened
 *
 * Gives the bytes of a file beside the root, or null where there is none. The name is a valid file name.
 * @typedef {(name: string) => Uint8Array | null} Beside
 */

/** @param {Uint8Array} file @returns {Opened} */
export function openFile(file) {
  const container = readHeader(file);
  return { container, manifest: readManifest(container) };
}

/** @param {Manifest} manifest @returns {boolean} */
export function isRoot({ set }) {
  return set !== null && set.part === 0;
}

/**
 * The part files of a root: SD601, their 1xx and 2xx, SD602; then SD603.
 * @param {Opened} root
 * @param {Beside} beside
 * @returns {Opened[]}
 */
export function openParts({ manifest }, beside) {
  const set = /** @type {NonNullable<Manifest["set"]>} */ (manifest.set);
  const files = set.parts.map(({ name, size, manifest: digest }, i) => {
    const bytes = beside(name);
    if (bytes === null || bytes.length !== size) {
      throw new RuleError("SD601", `part file ${name} is not there, or has another size than ${size}`);
    }
    const opened = openFile(bytes);
    rule(hex(b3(opened.container.manifest)) === digest, "SD602", `${name} has another manifest`);
    rule(belongs(opened.manifest, manifest, i + 1), "SD602", `${name} is not part ${i + 1} of this set`);
    return opened;
  });
  checkMerged(manifest, files);
  return files;
}

/** @param {Manifest} part @param {Manifest} root @param {number} number @returns {boolean} */
function belongs(part, root, number) {
  const keys = /** @type {const} */ (["base", "target", "version", "profile", "lean"]);
  return part.set?.id === root.set?.id && part.set?.part === number && keys.every((key) => part[key] === root[key]);
}

/** @param {Manifest} root @param {Opened[]} files SD603 */
function checkMerged(root, files) {
  const records = byName(files.flatMap(({ manifest }) => manifest.tensors), (record) => record.name);
  checkDistinct(records, root.untouched, "SD603");
  const nnz = files.reduce((sum, { manifest }) => sum + BigInt(manifest.nnz), 0n);
  rule(nnz === BigInt(root.nnz), "SD603", `${nnz} entries in the part files, ${root.nnz} in the root`);
  rule(root.invertible === isInvertible(records), "SD603", "invertible is something else");
}

/**
 * @template T
 * @param {T[]} items
 * @param {(item: T) => string} name
 * @returns {T[]} sorted
 */
export function byName(items, name) {
  return [...items].sort((a, b) => compareUtf8(name(a), name(b)));
}
