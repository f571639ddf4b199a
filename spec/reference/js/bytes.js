/**
 * Bytes, integers and names. Integers are little-endian and unsigned.
 */

const ENCODER = new TextEncoder();
const DECODER = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * @param {string} text without lone surrogates
 * @returns {Uint8Array}
 */
export function utf8(text) {
  return ENCODER.encode(text);
}

/**
 * @param {Uint8Array} bytes
 * @returns {string | null} null if the bytes are not UTF-8; a byte order mark stays a character
 */
export function fromUtf8(bytes) {
  try {
    return DECODER.decode(bytes);
  } catch {
    return null;
  }
}

/**
 * The order of the UTF-8 bytes, which is that of the code points. JavaScript compares UTF-16 units, which is another
 * order: U+1F600 (units d83d de00) stands behind U+FFFD.
 * @param {string} a
 * @param {string} b
 * @returns {number} negative, 0 or positive
 */
export function compareUtf8(a, b) {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i += 1) {
    const x = a.charCodeAt(i);
    const y = b.charCodeAt(i);
    if (x !== y) {
      // The first unit that differs decides. A surrogate stands for a code point above all other units.
      return Number(isSurrogate(x)) - Number(isSurrogate(y)) || x - y;
    }
  }
  return a.length - b.length;
}

/** @param {number} unit @returns {boolean} */
function isSurrogate(unit) {
  return unit >= 0xd800 && unit <= 0xdfff;
}

/**
 * @param {string[]} names
 * @returns {boolean} whether each is behind the one before it, so that none comes twice
 */
export function ascending(names) {
  return names.every((name, i) => i === 0 || compareUtf8(names[i - 1], name) < 0);
}

/** @param {Uint8Array} bytes @returns {string} */
export function hex(bytes) {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("hex");
}

/** @param {string} digits @returns {Uint8Array} */
export function fromHex(digits) {
  return Uint8Array.from(Buffer.from(digits, "hex"));
}

/** @param {Uint8Array} a @param {Uint8Array} b @returns {boolean} */
export function same(a, b) {
  return a.length === b.length && Buffer.compare(a, b) === 0;
}

/** @param {Uint8Array[]} pieces @returns {Uint8Array} */
export function concat(pieces) {
  const out = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    out.set(piece, at);
    at += piece.length;
  }
  return out;
}

/** @param {Uint8Array} bytes @param {number} at @returns {number} the u32 there */
export function readU32(bytes, at) {
  return bytes[at] + bytes[at + 1] * 0x100 + bytes[at + 2] * 0x10000 + bytes[at + 3] * 0x1000000;
}

/** @param {Uint8Array} bytes @param {number} at @returns {bigint} the u64 there */
export function readU64(bytes, at) {
  return BigInt(readU32(bytes, at)) + (BigInt(readU32(bytes, at + 4)) << 32n);
}

/** @param {number} value @returns {Uint8Array} */
export function u32(value) {
  const out = new Uint8Array(4);
  new DataView(out.buffer).setUint32(0, value, true);
  return out;
}

/** @param {number | bigint} value @returns {Uint8Array} */
export function u64(value) {
  const out = new Uint8Array(8);
  new DataView(out.buffer).setBigUint64(0, BigInt(value), true);
  return out;
}

/**
 * A text as digests take it: its length in bytes as u32, and its bytes.
 * @param {string} value
 * @returns {Uint8Array}
 */
export function text(value) {
  const bytes = utf8(value);
  return concat([u32(bytes.length), bytes]);
}
