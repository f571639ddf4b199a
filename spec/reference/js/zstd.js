/**
 * Frames (section 3.1).
 *
 * The decoder is libzstd itself, compiled to WebAssembly: it verifies the checksum of a frame, never writes beyond the
 * buffer it is given, and ends on any input. Everything else that 3.1 asks for is checked here, before it is called:
 * it would also read several frames in a row, skippable frames, and frames that do not declare their size.
 */

import { ZSTDDecoder } from "zstddec";

import { readU32, readU64 } from "./bytes.js";
import { RuleError, rule } from "./rules.js";

const MAGIC = 0xfd2fb528;
const MOST_WINDOW = 2n ** 27n;
const MOST_BLOCK = 2n ** 17n;

const decoder = new ZSTDDecoder();
await decoder.init();

/**
 * The header of a Zstandard frame, RFC 8878, section 3.1.1.1.
 * @typedef {{length: number, window: bigint, size: bigint, checksum: boolean}} FrameHeader
 */

/**
 * @param {Uint8Array} frame
 * @returns {FrameHeader | string} what is wrong, if anything is
 */
function readHeader(frame) {
  if (frame.length < 6 || readU32(frame, 0) !== MAGIC) {
    return "no Zstandard frame";
  }
  const descriptor = frame[4];
  const single = (descriptor & 0x20) !== 0;
  const idBytes = [0, 1, 2, 4][descriptor & 3];
  const sizeBytes = [single ? 1 : 0, 2, 4, 8][descriptor >> 6];
  const length = 5 + (single ? 0 : 1) + idBytes + sizeBytes;
  if ((descriptor & 0x08) !== 0) {
    return "a reserved bit is set";
  }
  if (sizeBytes === 0) {
    return "the content size is not declared";
  }
  if (frame.length < length) {
    return "the frame header is cut off";
  }
  const idAt = length - sizeBytes - idBytes;
  // RFC 8878: a dictionary id of 0 means the same as none.
  if (frame.subarray(idAt, idAt + idBytes).some((byte) => byte !== 0)) {
    return "the frame needs a dictionary";
  }
  const padded = new Uint8Array(8);
  padded.set(frame.subarray(length - sizeBytes, length));
  // A size of two bytes is counted from 256, since one byte would do for less.
  const size = readU64(padded, 0) + (sizeBytes === 2 ? 256n : 0n);
  return { length, size, window: single ? size : windowSize(frame[5]), checksum: (descriptor & 4) !== 0 };
}

/** @param {number} descriptor @returns {bigint} */
function windowSize(descriptor) {
  const base = 1n << BigInt(10 + (descriptor >> 3));
  return base + (base / 8n) * BigInt(descriptor & 7);
}

/**
 * Follows the blocks of a frame, without decoding them.
 * @param {Uint8Array} frame
 * @param {FrameHeader} header
 * @returns {number | string} the length of the frame, or what is wrong
 */
function frameLength(frame, header) {
  const mostBlock = header.window < MOST_BLOCK ? header.window : MOST_BLOCK;
  let at = header.length;
  for (let last = false; !last;) {
    if (at + 3 > frame.length) {
      return "the frame is cut off";
    }
    const block = frame[at] + frame[at + 1] * 0x100 + frame[at + 2] * 0x10000;
    const kind = (block >> 1) & 3;
    const size = block >> 3;
    if (kind === 3 || BigInt(size) > mostBlock) {
      return "a reserved or too large block";
    }
    last = (block & 1) === 1;
    // Kind 1 is one byte, repeated `size` times.
    at += 3 + (kind === 1 ? 1 : size);
  }
  return at + (header.checksum ? 4 : 0);
}

/**
 * The content of a frame as section 3.1 has it: stored bytes, or exactly one Zstandard frame.
 * @param {Uint8Array} frame
 * @param {number} length the decoded length; the caller has checked it against its limit
 * @param {string} code the rule that anything else breaks
 * @returns {Uint8Array}
 */
export function unframe(frame, length, code) {
  rule(frame.length <= length, code, `a frame of ${frame.length} bytes for ${length} bytes`);
  if (frame.length === length) {
    return frame;
  }
  const header = readHeader(frame);
  if (typeof header === "string") {
    throw new RuleError(code, header);
  }
  rule(header.size === BigInt(length), code, `the frame declares ${header.size} bytes, expected ${length}`);
  rule(header.window <= MOST_WINDOW, code, `a window of ${header.window} bytes`);
  const end = frameLength(frame, header);
  rule(end === frame.length, code, typeof end === "string" ? end : `a frame of ${end} bytes in ${frame.length}`);
  const content = decoder.decode(frame, length);
  // After an error the decoder returns something of another length.
  rule(content.length === length, code, "the frame cannot be decoded");
  return content;
}
