/**
 * Runs this reader over the vectors, the worked examples of the text, and prints what did not agree.
 *
 *     node spec/reference/js/check.js [SPEC]
 *
 * SPEC is the folder `spec/`, by default the one that this file lies in. The last line is a summary; the exit status is
 * 1 if anything did not agree.
 */

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import path from "node:path";
import { isDeepStrictEqual } from "node:util";
import { fileURLToPath, pathToFileURL } from "node:url";

import { fromHex, hex, same } from "./bytes.js";
import {
  RuleError, apply, describe, fingerprintOf, layOut, readFile, resolve, revert, tensorDigests,
} from "./decode.js";
import { b3 } from "./digests.js";
import { workedExamples } from "./examples.js";

/**
 * @typedef {import("./apply.js").Checkpoint} Checkpoint
 * @typedef {{name: string, dtype: string, shape: number[], bytes: {hex: string} | {repeat: string, times: number}}} Given
 */

const spec = process.argv[2] ?? fileURLToPath(new URL("../../", import.meta.url));
const folder = path.join(spec, "vectors");
/** The digest of each file. @type {Record<string, string>} */
const index = JSON.parse(readFileSync(path.join(folder, "index.json"), "utf8"));

/** @param {Given["bytes"]} bytes @returns {Uint8Array} */
function readBytes(bytes) {
  if ("hex" in bytes) {
    return fromHex(bytes.hex);
  }
  const piece = fromHex(bytes.repeat);
  return new Uint8Array(Buffer.alloc(piece.length * bytes.times, piece));
}

/** @param {Given[]} tensors @returns {Checkpoint} */
function readCheckpoint(tensors) {
  return new Map(tensors.map(({ name, dtype, shape, bytes }) => [name, { dtype, shape, bytes: readBytes(bytes) }]));
}

/** @param {Checkpoint} a @param {Checkpoint} b @returns {boolean} */
function sameTensors(a, b) {
  return a.size === b.size && [...a].every(([name, tensor]) => {
    const other = b.get(name);
    return other !== undefined && tensor.dtype === other.dtype && isDeepStrictEqual(tensor.shape, other.shape)
      && same(tensor.bytes, other.bytes);
  });
}

/**
 * @param {import("./delta.js").Delta} delta
 * @param {Checkpoint} base
 * @param {any} facts what it has to be, as far as they go
 * @returns {string[]} what is something else
 */
function checkFacts(delta, base, facts) {
  const found = describe(resolve(delta, base));
  return Object.keys(facts).filter((key) => !isDeepStrictEqual(found[key], facts[key]));
}

/** @param {Map<string, Uint8Array> | null} files @returns {Record<string, string> | undefined} their SHA-256 */
function fileDigests(files) {
  const digest = (/** @type {Uint8Array} */ bytes) => createHash("sha256").update(bytes).digest("hex");
  return files === null ? undefined : Object.fromEntries([...files].map(([name, bytes]) => [name, digest(bytes)]));
}

/**
 * @param {string} file a valid vector
 * @param {any} expected
 * @returns {string[]} what does not agree
 */
function checkValid(file, expected) {
  const delta = readFile(file);
  const { base_tensors: given, target_tensors: results, base_files, target_files, alone = {}, ...facts } = expected;
  const base = readCheckpoint(given);
  const wrong = checkFacts(delta, base, facts);
  for (const [name, partFacts] of Object.entries(alone)) {
    const part = readFile(path.join(path.dirname(file), name));
    wrong.push(...checkFacts(part, base, partFacts).map((what) => `${what} of ${name}`));
  }
  const target = apply(delta, base);
  const digests = Object.fromEntries([...tensorDigests(target)].map(([name, digest]) => [name, hex(digest)]));
  const reverted = brokenRule(() => revert(delta, target));
  /** @type {[string, boolean][]} */
  const checks = [
    ["the result of applying", fingerprintOf(target) === expected.target],
    ["target_tensors", isDeepStrictEqual(digests, results)],
    ["base_files", isDeepStrictEqual(fileDigests(layOut(delta, "base", base)), base_files)],
    ["target_files", isDeepStrictEqual(fileDigests(layOut(delta, "target", target)), target_files)],
    ["the refusal to revert", reverted === (expected.invertible ? "nothing" : "SD503")],
    ["the result of reverting", !expected.invertible || sameTensors(revert(delta, target), base)],
  ];
  return [...wrong, ...checks.filter(([, holds]) => !holds).map(([what]) => what)];
}

/** @param {() => unknown} work @returns {string} the code of the rule that it breaks */
function brokenRule(work) {
  try {
    work();
  } catch (error) {
    if (error instanceof RuleError) {
      return error.code;
    }
    throw error;
  }
  return "nothing";
}

/**
 * @param {string} name such as `valid/NAME`
 * @param {any} expected
 * @returns {string[]} what does not agree
 */
function checkVector(name, expected) {
  // A set is a folder, whose root has its name.
  const root = `${name}/${path.basename(name)}.safetensors`;
  const file = path.join(folder, root in index ? root : `${name}.safetensors`);
  if (name.startsWith("valid/")) {
    return checkValid(file, expected);
  }
  // A rule is broken when the file is read, or by what is done with a checkpoint.
  const operation = { apply, revert }[/** @type {string} */ (expected.kind)];
  const delta = operation === undefined ? null : readFile(file);
  const code = brokenRule(() => (delta === null ? readFile(file) : operation?.(delta, readCheckpoint(expected.tensors))));
  return code === expected.rule ? [] : [`${code} instead of ${expected.rule}`];
}

/** @param {string} name @param {() => string[]} check @returns {boolean} */
function report(name, check) {
  let wrong;
  try {
    wrong = check();
  } catch (error) {
    wrong = [error instanceof RuleError ? error.message : String(/** @type {Error} */ (error).stack)];
  }
  if (wrong.length > 0) {
    process.stdout.write(`${name}: ${wrong.join(", ")}\n`);
  }
  return wrong.length === 0;
}

const stored = Object.entries(index).map(([name, digest]) =>
  report(name, () => (hex(b3(readFileSync(path.join(folder, name)))) === digest ? [] : ["another digest than in index.json"])));
const vectors = Object.keys(index).filter((name) => name.endsWith(".expected.json")).map((name) => {
  const expected = JSON.parse(readFileSync(path.join(folder, name), "utf8"));
  const vector = name.replace(/\.expected\.json$/, "");
  return report(vector, () => checkVector(vector, expected));
});
const examples = workedExamples(pathToFileURL(`${path.resolve(spec)}/`)).map(({ name, holds }) =>
  report(name, () => (holds() ? [] : ["another result"])));

const counts = Object.entries({ files: stored, vectors, examples }).map(([what, results]) =>
  `${results.filter(Boolean).length} of ${results.length} ${what}`);
process.stdout.write(`agree: ${counts.join(", ")}\n`);
process.exitCode = [...stored, ...vectors, ...examples].every(Boolean) ? 0 : 1;
