/**
 * Which codec a part has. The codecs themselves: `index_codecs.js`, `value_codecs.js` and `ranked.js`, each after its
 * page in `spec/codecs/`.
 */

import { bitmask, dense, gap8, gap8Split, range, ranked, rawIndex } from "./index_codecs.js";
import { packed, planes, rankedValue, rawValue, zigzag } from "./value_codecs.js";

/** @typedef {import("./dtypes.js").Words} Words */

/**
 * `allows` is SD304 for a block that is not empty. `held` is the number of values m that follows from the index codec,
 * or null where only the streams tell (`range`). `decode` gives the words of the block that have a value, relative to
 * its first, in ascending order; it checks the rule of the codec.
 * @typedef {{id: string, streams: number, allows: (lengths: number[], count: number, words: number) => boolean,
 *   held: (count: number, words: number) => number | null,
 *   decode: (streams: Uint8Array[], block: {count: number, words: number, held: number, exact: boolean}) => Uint32Array
 * }} IndexCodec
 */

/**
 * `held` is the m of which streams of these lengths could be. `marks` is 0 exactly where the value is 0, and is there
 * before the rule of the codec has been checked. W is `width`.
 * @typedef {{id: string, streams: (width: number) => number, held: (lengths: number[], width: number) => number,
 *   allows: (lengths: number[], held: number, width: number) => boolean,
 *   marks: (streams: Uint8Array[], held: number, width: number) => Words,
 *   decode: (streams: Uint8Array[], held: number, width: number) => Words}} ValueCodec
 */

const INDEX = Object.fromEntries(
  [gap8, gap8Split, bitmask, range, dense, rawIndex, ranked].map((codec) => [codec.id, codec]),
);
const VALUE = Object.fromEntries([zigzag, planes, rawValue, rankedValue].map((codec) => [codec.id, codec]));

/** @param {import("./schema.js").Part} part @returns {IndexCodec} */
export function indexCodec(part) {
  return INDEX[part.index.get("id")];
}

/** @param {import("./schema.js").Part} part @returns {ValueCodec} */
export function valueCodec(part) {
  const id = part.value.get("id");
  return id === "packed" ? packed(part.value.get("width")) : VALUE[id];
}
