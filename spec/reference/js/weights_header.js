/**
 * The header of a file of weights, as a layout keeps it: a strictly valid safetensors header (section 3.6).
 */

import { readU64 } from "./bytes.js";
import { byteLength } from "./dtypes.js";
import { NotJson, TooDeep, parse } from "./json.js";
import { RuleError, rule } from "./rules.js";

/**
 * @typedef {{name: string, dtype: string, shape: number[], start: number, end: number}} PlacedTensor
 */

/**
 * @param {Uint8Array} bytes the length word and the JSON header, and nothing else
 * @param {string} code the rule that anything else breaks
 * @returns {{tensors: PlacedTensor[], length: number}} the tensors in the order of their bytes, and the length of these
 */
export function readWeightsHeader(bytes, code) {
  rule(bytes.length >= 8 && readU64(bytes, 0) === BigInt(bytes.length - 8), code, "the length word is wrong");
  rule(bytes[8] === 0x7b, code, "a header that does not begin with {");
  const header = parseObject(bytes.subarray(8), code);
  const metadata = header.has("__metadata__") ? header.get("__metadata__") : new Map();
  rule(metadata instanceof Map && [...metadata.values()].every((value) => typeof value === "string"), code, "metadata");
  const texts = [...header.keys(), ...metadata.keys(), ...metadata.values()];
  rule(texts.every((text) => text.isWellFormed()), code, "a lone surrogate");
  const tensors = [...header].filter(([name]) => name !== "__metadata__").map(([name, value]) => {
    const tensor = readTensor(name, value);
    rule(tensor !== null, code, `${JSON.stringify(name)} is no tensor`);
    return /** @type {PlacedTensor} */ (tensor);
  });
  // Tensors without bytes stand between their neighbours.
  tensors.sort((a, b) => a.start - b.start || a.end - b.end);
  let length = 0;
  for (const { name, start, end } of tensors) {
    rule(start === length, code, `a gap or an overlap before ${name}`);
    length = end;
  }
  return { tensors, length };
}

/** @param {Uint8Array} bytes @param {string} code @returns {Map<string, any>} */
function parseObject(bytes, code) {
  try {
    const { value, rest } = parse(bytes);
    rule(value instanceof Map && /^[ \t\n\r]*$/.test(rest), code, "no object, or text behind it");
    return value;
  } catch (error) {
    if (error instanceof NotJson || error instanceof TooDeep) {
      throw new RuleError(code, error.message);
    }
    throw error;
  }
}

/** @param {string} name @param {any} value @returns {PlacedTensor | null} */
function readTensor(name, value) {
  if (!(value instanceof Map) || [...value.keys()].sort().join() !== "data_offsets,dtype,shape") {
    return null;
  }
  const [dtype, shape, offsets] = [value.get("dtype"), value.get("shape"), value.get("data_offsets")];
  const numbers = [shape, offsets].every((list) => Array.isArray(list)
    && list.every((item) => typeof item === "number" && !Number.isNaN(item)));
  if (typeof dtype !== "string" || !numbers || offsets.length !== 2) {
    return null;
  }
  const [start, end] = offsets;
  return byteLength(dtype, shape) === BigInt(end - start) ? { name, dtype, shape, start, end } : null;
}
