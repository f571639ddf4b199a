/**
 * Strict and canonical JSON (section 3.2).
 *
 * `JSON.parse` is not enough: it takes the last of two equal keys, rounds numbers, and puts keys such as `"10"` first.
 * Objects become Maps, integers numbers, and all other numbers NaN: no text of this format may have one. A text is
 * canonical exactly if it is the serialisation of what was parsed.
 */

import { compareUtf8, fromUtf8 } from "./bytes.js";
import { RuleError } from "./rules.js";

/** The greatest depth of nesting. */
export const MOST_DEPTH = 8;

const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?/y;
const ESCAPES = new Map(Object.entries({ '"': '"', "\\": "\\", "/": "/", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" }));
const LITERALS = /** @type {[string, boolean | null][]} */ ([["true", true], ["false", false], ["null", null]]);

// A text of 2^26 bytes can hold 2^24 empty objects or arrays, which are cheap only if they are one and the same.
const NO_OBJECT = new Map();
const NO_ARRAY = Object.freeze(/** @type {any[]} */ ([]));

/** @param {number} unit NaN at the end of the text @returns {boolean} whether a string holds it as it is */
function isPlain(unit) {
  return unit >= 0x20 && unit !== 0x22 && unit !== 0x5c;
}

/** @param {string} numeral @returns {number} NaN unless it is an integer from 0 to 2^53 - 1, written as one */
function toInteger(numeral) {
  const value = /^[0-9]+$/.test(numeral) ? Number(numeral) : NaN;
  return Number.isSafeInteger(value) ? value : NaN;
}

/** The text is not strict JSON. */
export class NotJson extends Error {}

/** The text is nested too deeply, and was not read on. */
export class TooDeep extends Error {}

class Parser {
  /** @param {string} source @param {number} mostDepth */
  constructor(source, mostDepth) {
    this.source = source;
    this.at = 0;
    this.mostDepth = mostDepth;
  }

  /** @param {string} reason @returns {never} */
  fail(reason) {
    throw new NotJson(`${reason} at character ${this.at}`);
  }

  space() {
    for (;;) {
      const unit = this.source.charCodeAt(this.at);
      if (unit !== 0x20 && unit !== 0x09 && unit !== 0x0a && unit !== 0x0d) {
        return;
      }
      this.at += 1;
    }
  }

  /** @param {string} character @returns {boolean} whether it stands here; it is passed over */
  skip(character) {
    this.space();
    if (this.source[this.at] !== character) {
      return false;
    }
    this.at += 1;
    return true;
  }

  /** @param {number} depth that of a container which begins here @returns {any} */
  value(depth) {
    this.space();
    const first = this.source[this.at];
    if (first === "{" || first === "[") {
      if (depth > this.mostDepth) {
        throw new TooDeep(`nested deeper than ${this.mostDepth}`);
      }
      this.at += 1;
      return first === "{" ? this.object(depth) : this.array(depth);
    }
    if (first === '"') {
      this.at += 1;
      return this.string();
    }
    NUMBER.lastIndex = this.at;
    const found = NUMBER.exec(this.source);
    if (found !== null) {
      this.at += found[0].length;
      return toInteger(found[0]);
    }
    for (const [word, meaning] of LITERALS) {
      if (this.source.startsWith(word, this.at)) {
        this.at += word.length;
        return meaning;
      }
    }
    return this.fail("no value");
  }

  /** @param {number} depth @returns {Map<string, any>} */
  object(depth) {
    if (this.skip("}")) {
      return NO_OBJECT;
    }
    const out = new Map();
    do {
      if (!this.skip('"')) {
        this.fail("no key");
      }
      const key = this.string();
      if (out.has(key)) {
        this.fail(`key ${JSON.stringify(key)} comes twice`);
      }
      if (!this.skip(":")) {
        this.fail("no colon");
      }
      out.set(key, this.value(depth + 1));
    } while (this.skip(","));
    if (!this.skip("}")) {
      this.fail("no end of an object");
    }
    return out;
  }

  /** @param {number} depth @returns {readonly any[]} */
  array(depth) {
    if (this.skip("]")) {
      return NO_ARRAY;
    }
    const out = [this.value(depth + 1)];
    while (this.skip(",")) {
      out.push(this.value(depth + 1));
    }
    if (!this.skip("]")) {
      this.fail("no end of an array");
    }
    return out;
  }

  /** @returns {string} what stands before the next quotation mark */
  string() {
    let out = "";
    for (;;) {
      const start = this.at;
      while (isPlain(this.source.charCodeAt(this.at))) {
        this.at += 1;
      }
      out += this.source.slice(start, this.at);
      const next = this.source[this.at];
      this.at += 1;
      if (next === '"') {
        return out;
      }
      if (next !== "\\") {
        this.fail("a string that does not end, or a control character");
      }
      out += this.escape();
    }
  }

  /** @returns {string} */
  escape() {
    const letter = this.source[this.at];
    this.at += 1;
    const digits = this.source.slice(this.at, this.at + 4);
    if (letter === "u" && /^[0-9a-fA-F]{4}$/.test(digits)) {
      this.at += 4;
      return String.fromCharCode(Number.parseInt(digits, 16));
    }
    return ESCAPES.get(letter) ?? this.fail("no escape");
  }
}

/**
 * Strict JSON, with spaces or other whitespace wherever JSON allows it.
 * @param {Uint8Array} bytes
 * @param {number} [mostDepth]
 * @returns {{value: any, rest: string}} the value, and the text behind it
 * @throws {NotJson | TooDeep}
 */
export function parse(bytes, mostDepth = MOST_DEPTH) {
  const source = fromUtf8(bytes);
  if (source === null) {
    throw new NotJson("not UTF-8");
  }
  const parser = new Parser(source, mostDepth);
  // A byte order mark is no whitespace of JSON, so it is refused here as "no value".
  const value = parser.value(1);
  return { value, rest: source.slice(parser.at) };
}

/** @param {string} text @returns {string} */
function quoted(text) {
  // JSON.stringify escapes what 3.2 says, in the same form; beyond that only lone surrogates, which it writes as \udxxx.
  const out = JSON.stringify(text);
  if (!text.isWellFormed()) {
    throw new NotJson("a surrogate code point");
  }
  return out;
}

/**
 * The canonical text of a parsed value.
 * @param {any} value
 * @returns {string}
 * @throws {NotJson} if it has none
 */
export function serialise(value) {
  if (value === null || typeof value === "boolean") {
    return String(value);
  }
  if (typeof value === "string") {
    return quoted(value);
  }
  if (typeof value === "number") {
    if (Number.isNaN(value)) {
      throw new NotJson("a number that is no integer from 0 to 2^53 - 1");
    }
    return String(value);
  }
  if (Array.isArray(value)) {
    return `[${value.map(serialise).join(",")}]`;
  }
  const keys = [...value.keys()].sort(compareUtf8);
  return `{${keys.map((key) => `${quoted(key)}:${serialise(value.get(key))}`).join(",")}}`;
}

/**
 * Canonical JSON and nothing else.
 * @param {Uint8Array} bytes
 * @param {string} code the rule that other text breaks
 * @returns {any}
 */
export function parseCanonical(bytes, code) {
  try {
    const { value } = parse(bytes);
    // This compares what stands behind the value, too.
    if (serialise(value) === fromUtf8(bytes)) {
      return value;
    }
  } catch (error) {
    if (error instanceof NotJson || error instanceof TooDeep) {
      throw new RuleError(code, error.message);
    }
    throw error;
  }
  throw new RuleError(code, "not canonical JSON");
}
