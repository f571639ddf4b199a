/**
 * Which codecs a part may have: SD210 (section 6).
 */

import { rule } from "./rules.js";

/** @typedef {import("./schema.js").Part} Part */

/** The dtypes of tensors whose words have an exponent that `ranked` knows. */
const RANKED_DTYPES = ["BF16", "F16"];

/** The words of a codec's parameters, and the values they may have. @type {Record<string, Record<string, number[]>>} */
const PARAMETERS = {
  gap8: {}, "gap8-split": {}, bitmask: {}, range: {}, dense: {}, raw: {},
  packed: { width: [0, 1, 2, 4, 8] }, zigzag: {}, planes: {}, ranked: {},
};

const SCATTERED = ["gap8", "gap8-split", "bitmask", "raw"];
const WHOLE = ["planes", "raw"];

/** The rows of the table of section 6: ops, index codecs, value codecs. @type {[string[], string[], string[]][]} */
const ALLOWED = [
  [["difference"], SCATTERED, ["packed", "zigzag", ...WHOLE]],
  [["difference"], ["range", "dense"], ["zigzag", ...WHOLE]],
  [["replace", "add"], [...SCATTERED, "range", "dense"], WHOLE],
  [["new", "drop", "resize"], ["dense"], WHOLE],
  [["difference"], ["ranked"], ["ranked"]],
];

/** @param {string} name that of the record @param {Map<string, any>} codec */
function checkParameters(name, codec) {
  const id = codec.get("id");
  rule(Object.hasOwn(PARAMETERS, id), "SD210", `${name}: codec ${id} is unknown`);
  const known = PARAMETERS[id];
  for (const [key, value] of codec) {
    const valid = key === "id" || (Object.hasOwn(known, key) && known[key].includes(value));
    rule(valid, "SD210", `${name}: ${id} with ${key}`);
  }
  rule(codec.size === 1 + Object.keys(known).length, "SD210", `${name}: ${id} lacks a parameter`);
}

/**
 * SD210 for one coded part.
 * @param {string} name that of the record
 * @param {Part} part
 * @param {string} dtype that of the tensor which the part is about
 */
export function checkCodecs(name, part, dtype) {
  checkParameters(name, part.index);
  checkParameters(name, part.value);
  const [index, value] = [part.index.get("id"), part.value.get("id")];
  const allowed = ALLOWED.some(([ops, indices, values]) =>
    ops.includes(part.op) && indices.includes(index) && values.includes(value));
  rule(allowed, "SD210", `${name}: ${part.op} with ${index} and ${value}`);
  rule(index !== "ranked" || RANKED_DTYPES.includes(dtype), "SD210", `${name}: ranked for ${dtype}`);
  rule(part.block >= 8 && part.block <= 24, "SD210", `${name}: blocks of 2^${part.block} words`);
}
