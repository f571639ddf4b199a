/**
 * From the header to the manifest: SD201 to SD217.
 */

import { checkBeside } from "./beside.js";
import { hex } from "./bytes.js";
import { b3 } from "./digests.js";
import { parseCanonical } from "./json.js";
import { checkNames } from "./names.js";
import { RANKED, checkCompact, checkRecords } from "./parts.js";
import { rule } from "./rules.js";
import { readManifestTypes } from "./schema.js";
import { unframe } from "./zstd.js";

const MOST_MANIFEST = 2n ** 26n;

/**
 * @typedef {import("./header.js").Container} Container
 * @typedef {import("./schema.js").Manifest} Manifest
 */

/**
 * @param {Container} container
 * @returns {Manifest}
 */
export function readManifest(container) {
  const { metadata, manifest: frame } = container;
  rule(hex(b3(frame)) === metadata.get("sd.manifest"), "SD201", "the manifest has another digest");
  // The number may have any number of digits, so it is looked at as a bigint first.
  const size = BigInt(/** @type {string} */ (metadata.get("sd.manifest_size")));
  rule(size <= MOST_MANIFEST, "SD202", `a manifest of ${size} bytes`);
  const bytes = unframe(frame, Number(size), "SD202");
  const manifest = readManifestTypes(parseCanonical(bytes, "SD203"));
  checkAgreement(metadata, manifest);
  const unknown = manifest.must_understand.filter((feature) => feature !== RANKED);
  rule(unknown.length === 0, "SD206", `needs ${unknown.join(", ")}`);
  checkNames(manifest);
  checkRecords(manifest);
  checkBeside(manifest);
  checkCompact(manifest);
  return manifest;
}

/**
 * SD205.
 * @param {Map<string, string>} metadata
 * @param {Manifest} manifest
 */
function checkAgreement(metadata, manifest) {
  /** @type {[string, string | undefined][]} */
  const facts = [
    ["sd.base", manifest.base],
    ["sd.target", manifest.target],
    ["sd.content", manifest.content],
    ["sd.invertible", String(manifest.invertible)],
    ["sd.nnz", String(manifest.nnz)],
    ["sd.profile", manifest.profile],
    ["sd.version", manifest.version],
    ["sd.set_id", manifest.set?.id],
    ["sd.part", manifest.set === null ? undefined : String(manifest.set.part)],
  ];
  for (const [key, value] of facts) {
    rule(metadata.get(key) === value, "SD205", `${key} is ${metadata.get(key)}, in the manifest ${value}`);
  }
}
