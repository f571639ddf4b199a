/**
 * The arithmetic of `add` (section 5).
 *
 * JavaScript computes in float64, rounding to nearest with ties to even, and fuses nothing: the products and sums are
 * those of the text. What is left is to read and to write the shorter formats, with one rounding only.
 */

import { RuleError } from "./rules.js";

/**
 * The 16-bit formats: bits of the mantissa, and the exponent of the least normal number.
 * @type {Record<string, {mantissa: number, least: number}>}
 */
const SHORT = { F16: { mantissa: 10, least: -14 }, BF16: { mantissa: 7, least: -126 } };

const one = new Float64Array(1);
const oneWord = new BigUint64Array(one.buffer);
const single = new Float32Array(1);
const singleWord = new Uint32Array(single.buffer);

/**
 * @param {string} dtype F16, BF16, F32 or F64
 * @param {number | bigint} word
 * @returns {number} its exact value, an infinity or NaN
 */
export function toNumber(dtype, word) {
  if (dtype === "F64") {
    oneWord[0] = BigInt(word);
    return one[0];
  }
  if (dtype === "F32") {
    singleWord[0] = Number(word);
    return single[0];
  }
  const { mantissa, least } = SHORT[dtype];
  const sign = Number(word) >= 0x8000 ? -1 : 1;
  const exponent = (Number(word) & 0x7fff) >> mantissa;
  const fraction = Number(word) & (2 ** mantissa - 1);
  if (exponent === 2 ** (15 - mantissa) - 1) {
    return fraction === 0 ? sign * Infinity : NaN;
  }
  // Subnormal numbers have the exponent of the least normal one, and no hidden bit.
  const whole = exponent === 0 ? fraction : fraction + 2 ** mantissa;
  return sign * whole * 2 ** (least + Math.max(exponent - 1, 0) - mantissa);
}

/**
 * Rounds to nearest, ties to even.
 * @param {string} dtype F16, BF16, F32 or F64
 * @param {number} value finite
 * @returns {number | bigint | null} the word; null if the result is not finite
 */
export function toWord(dtype, value) {
  if (dtype === "F64") {
    one[0] = value;
    return oneWord[0];
  }
  if (dtype === "F32") {
    // Storing rounds the float64 directly, subnormals included.
    single[0] = value;
    return Number.isFinite(single[0]) ? singleWord[0] : null;
  }
  const { mantissa, least } = SHORT[dtype];
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const size = Math.abs(value);
  const exponent = Math.max(exponentOf(size), least);
  // Numbers of this exponent lie 2^(exponent - mantissa) apart. Dividing by a power of two is exact here: what becomes
  // subnormal is far below one half, and is rounded to 0 either way.
  const steps = size / 2 ** (exponent - mantissa);
  let rounded = Math.floor(steps);
  const rest = steps - rounded;
  if (rest > 0.5 || (rest === 0.5 && rounded % 2 === 1)) {
    rounded += 1;
  }
  // The hidden bit adds 1 to the exponent field, and so does a mantissa that was rounded up to the next power of two.
  const word = (exponent - least) * 2 ** mantissa + rounded;
  return word < (2 ** (15 - mantissa) - 1) * 2 ** mantissa ? sign + word : null;
}

/** @param {number} size finite, not negative @returns {number} the exponent of its highest bit; of subnormals, -1023 */
function exponentOf(size) {
  one[0] = size;
  return Number(oneWord[0] >> 52n) - 1023;
}

/**
 * new = round(old + scale * value), in place.
 * @param {{dtype: string, words: import("./dtypes.js").Words}} tensor
 * @param {{dtype: string, scale: string, indices: Float64Array, words: import("./dtypes.js").Words}} part
 */
export function addScaled(tensor, part) {
  const scale = toNumber("F64", BigInt(`0x${part.scale}`));
  part.indices.forEach((index, i) => {
    const old = toNumber(tensor.dtype, tensor.words[index]);
    const value = toNumber(part.dtype, part.words[i]);
    const product = scale * value;
    const sum = old + product;
    const finite = [old, value, product, sum].every(Number.isFinite);
    const word = finite ? toWord(tensor.dtype, sum) : null;
    if (word === null) {
      throw new RuleError("SD505", `${old} + ${scale} * ${value} at index ${index} is not finite`);
    }
    /** @type {any} */ (tensor.words)[index] = word;
  });
}

