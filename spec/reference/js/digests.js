/**
 * Digests and fingerprints (section 4). Worked examples: `spec/fingerprints.md`.
 */

import { blake3 } from "@noble/hashes/blake3.js";

import { compareUtf8, concat, text, u32, u64, utf8 } from "./bytes.js";
import { wordBytes } from "./dtypes.js";

/** Words of a segment. */
export const SEGMENT = 2 ** 22;

/**
 * An end of a record, as the digests see it.
 * @typedef {{dtype: string, shape: number[]}} Shaped
 */

/**
 * `B3(data)`, or `B3[context](data)`.
 * @param {Uint8Array} data
 * @param {string} [context]
 * @returns {Uint8Array} 32 bytes
 */
export function b3(data, context) {
  return context === undefined ? blake3(data) : blake3(data, { context: utf8(context) });
}

/**
 * A digest of something that comes in pieces.
 * @param {string} context
 * @returns {{update: (data: Uint8Array) => unknown, digest: () => Uint8Array}}
 */
export function hasher(context) {
  return blake3.create({ context: utf8(context) });
}

/** @param {number} words @returns {number} how many segments a tensor of so many words has */
export function segmentCount(words) {
  return Math.ceil(words / SEGMENT);
}

/**
 * @param {string} dtype
 * @param {Uint8Array} bytes those of the tensor
 * @returns {Uint8Array} the segment digests, one behind the other
 */
export function segmentDigests(dtype, bytes) {
  const step = SEGMENT * wordBytes(dtype);
  const digests = [];
  for (let at = 0; at < bytes.length; at += step) {
    digests.push(b3(bytes.subarray(at, at + step), "sparsedelta 1 segment"));
  }
  return concat(digests);
}

/**
 * A dtype and a shape as the digests take them.
 * @param {Shaped} tensor
 * @returns {Uint8Array}
 */
export function shaped({ dtype, shape }) {
  return concat([text(dtype), u32(shape.length), ...shape.map(u64)]);
}

/**
 * @param {Shaped} tensor
 * @param {Uint8Array} segments its segment digests
 * @returns {Uint8Array}
 */
export function tensorDigest(tensor, segments) {
  return b3(concat([shaped(tensor), u64(segments.length / 32), segments]), "sparsedelta 1 tensor");
}

/**
 * @param {Map<string, Uint8Array>} tensors the tensor digest of each name
 * @returns {Uint8Array}
 */
export function fingerprint(tensors) {
  const state = hasher("sparsedelta 1 checkpoint");
  state.update(u64(tensors.size));
  for (const name of [...tensors.keys()].sort(compareUtf8)) {
    state.update(text(name));
    state.update(/** @type {Uint8Array} */ (tensors.get(name)));
  }
  return state.digest();
}
