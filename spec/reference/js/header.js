/**
 * The container and its header: SD101 to SD107 (section 3).
 */

import { fromUtf8, readU64 } from "./bytes.js";
import { NotJson, TooDeep, parse, serialise } from "./json.js";
import { RuleError, rule } from "./rules.js";

const MOST_HEADER = 65528n;
const TENSORS = ["sd.manifest", "sd.tables", "sd.data"];

const DECIMAL = /^(?:0|[1-9][0-9]*)$/;
export const DIGEST = /^[0-9a-f]{64}$/;
export const VERSION = /^(?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*)$/;
export const PROFILE = /^[a-z0-9-]{1,32}$/;

/** The required keys of `__metadata__` which SD106 judges, and their form. @type {[string, RegExp][]} */
const REQUIRED = [
  ["sd.profile", PROFILE],
  ["sd.base", DIGEST],
  ["sd.target", DIGEST],
  ["sd.content", DIGEST],
  ["sd.invertible", /^(?:true|false)$/],
  ["sd.nnz", DECIMAL],
  ["sd.manifest", DIGEST],
  ["sd.manifest_size", DECIMAL],
];

/**
 * A file whose header is valid: its metadata, and the bytes of its three tensors.
 * @typedef {{metadata: Map<string, string>, manifest: Uint8Array, tables: Uint8Array, data: Uint8Array}} Container
 */

/**
 * @param {Uint8Array} file
 * @returns {Container}
 */
export function readHeader(file) {
  rule(file.length >= 8, "SD101", `a file of ${file.length} bytes`);
  const length = readU64(file, 0);
  rule(length <= MOST_HEADER && length % 8n === 0n, "SD101", `a header of ${length} bytes`);
  const end = 8 + Number(length);
  rule(end <= file.length, "SD101", `a header of ${length} bytes in a file of ${file.length}`);
  const header = readObject(file.subarray(8, end));
  const metadata = readMetadata(header.get("__metadata__"));
  return { metadata, ...readTensors(header, file.subarray(end)) };
}

/**
 * SD102 and SD103.
 * @param {Uint8Array} bytes
 * @returns {Map<string, any>}
 */
function readObject(bytes) {
  try {
    const { value, rest } = parse(bytes);
    rule(value instanceof Map, "SD102", "the header is no object");
    rule(/^ *$/.test(rest), "SD102", "text behind the header");
    rule(rest.length <= 7, "SD103", `${rest.length} spaces behind the header`);
    rule(canonical(value) === fromUtf8(bytes.subarray(0, bytes.length - rest.length)), "SD103", "not canonical JSON");
    return value;
  } catch (error) {
    if (error instanceof NotJson || error instanceof TooDeep) {
      throw new RuleError(error instanceof NotJson ? "SD102" : "SD103", error.message);
    }
    throw error;
  }
}

/** @param {any} value @returns {string | null} null if the value has no canonical text */
function canonical(value) {
  try {
    return serialise(value);
  } catch (error) {
    if (error instanceof NotJson) {
      return null;
    }
    throw error;
  }
}

/**
 * SD104 to SD106.
 * @param {any} metadata
 * @returns {Map<string, string>}
 */
function readMetadata(metadata) {
  rule(metadata instanceof Map, "SD104", "no object __metadata__");
  rule([...metadata.values()].every((value) => typeof value === "string"), "SD104", "__metadata__ holds no strings");
  rule(metadata.get("format") === "sparsedelta", "SD104", "the format is not sparsedelta");
  const version = metadata.get("sd.version") ?? "";
  rule(VERSION.test(version) && version.startsWith("1."), "SD105", `version ${version}`);
  for (const [key, form] of REQUIRED) {
    rule(form.test(metadata.get(key) ?? ""), "SD106", `${key} is ${metadata.get(key)}`);
  }
  rule(metadata.has("sd.set_id") === metadata.has("sd.part"), "SD106", "sd.set_id or sd.part alone");
  if (metadata.has("sd.set_id")) {
    rule(DIGEST.test(metadata.get("sd.set_id")), "SD106", `sd.set_id is ${metadata.get("sd.set_id")}`);
    rule(DECIMAL.test(metadata.get("sd.part")), "SD106", `sd.part is ${metadata.get("sd.part")}`);
  }
  return metadata;
}

/**
 * SD107.
 * @param {Map<string, any>} header
 * @param {Uint8Array} data what stands behind the header
 * @returns {{manifest: Uint8Array, tables: Uint8Array, data: Uint8Array}}
 */
function readTensors(header, data) {
  rule(header.size === 4 && TENSORS.every((name) => header.has(name)), "SD107", "other tensors than the three");
  let start = 0;
  const [manifest, tables, frames] = TENSORS.map((name) => {
    const end = readTensor(name, header.get(name), start, data.length);
    const bytes = data.subarray(start, end);
    start = end;
    return bytes;
  });
  rule(start === data.length, "SD107", `the tensors end at ${start} of ${data.length} bytes`);
  return { manifest, tables, data: frames };
}

/**
 * @param {string} name
 * @param {any} tensor
 * @param {number} start where it has to begin
 * @param {number} most where it has to end at the latest
 * @returns {number} its end
 */
function readTensor(name, tensor, start, most) {
  const keys = tensor instanceof Map ? [...tensor.keys()].join() : "";
  rule(keys === "data_offsets,dtype,shape", "SD107", `${name} is no tensor`);
  const [shape, offsets] = [tensor.get("shape"), tensor.get("data_offsets")];
  rule(tensor.get("dtype") === "U8", "SD107", `${name} is not U8`);
  rule(isNumbers(shape, 1) && isNumbers(offsets, 2), "SD107", `${name} has no shape or offsets of numbers`);
  const [from, to] = offsets;
  rule(from === start && to >= from && to <= most, "SD107", `${name} lies at ${from} to ${to}, expected ${start}`);
  rule(shape[0] === to - from, "SD107", `${name} has another shape than length`);
  return to;
}

/** @param {any} value @param {number} count @returns {boolean} */
function isNumbers(value, count) {
  return Array.isArray(value) && value.length === count && value.every((item) => typeof item === "number");
}
