/**
 * The types of the manifest: SD204 (sections 3.3, 3.6, 3.7, 3.8).
 *
 * A **reader** takes a parsed JSON value and where it stands, and gives the value back as plain data, with the known
 * keys only: all others are to be ignored. The code below the readers of single values *is* the tables of section 3.
 */

import { DIGEST, PROFILE, VERSION } from "./header.js";
import { RuleError, rule } from "./rules.js";

/** @typedef {(value: any, where: string) => any} Reader */

/** @param {string} type @returns {Reader} */
const primitive = (type) => (value, where) => {
  rule(typeof value === type, "SD204", `${where} is no ${type}`);
  return value;
};
const text = primitive("string");
const flag = primitive("boolean");
// Canonical JSON has integers from 0 to 2^53 - 1 only.
const whole = primitive("number");

/** @param {RegExp} form @returns {Reader} */
const formed = (form) => (value, where) => {
  rule(typeof value === "string" && form.test(value), "SD204", `${where} has another form`);
  return value;
};
const digest = formed(DIGEST);

/** @param {Reader} item @returns {Reader} */
const nullable = (item) => (value, where) => (value === null ? null : item(value, where));

/** @param {Reader} item @returns {Reader} */
const list = (item) => (value, where) => {
  rule(Array.isArray(value), "SD204", `${where} is no array`);
  return value.map((/** @type {any} */ entry, /** @type {number} */ i) => item(entry, `${where}[${i}]`));
};

/** @type {Reader} */
const object = (value, where) => {
  rule(value instanceof Map, "SD204", `${where} is no object`);
  return value;
};

/**
 * @param {Record<string, Reader>} keys all of them required
 * @returns {Reader}
 */
const fields = (keys) => (value, where) => {
  object(value, where);
  return Object.fromEntries(Object.entries(keys).map(([key, read]) => {
    rule(value.has(key), "SD204", `${where} has no ${key}`);
    return [key, read(value.get(key), `${where}.${key}`)];
  }));
};

/** @type {Reader} */
const texts = (value, where) => {
  for (const [key, entry] of object(value, where)) {
    text(entry, `${where}.${key}`);
  }
  return value;
};

/**
 * A codec keeps all its keys: there, an unknown one is an unknown parameter (SD210).
 * @type {Reader}
 */
const codec = (value, where) => {
  text(object(value, where).get("id"), `${where}.id`);
  return value;
};

const CODED = { nnz: whole, block: whole, index: codec, value: codec, bytes: whole };
const SINGLE = { dtype: text, scale: formed(/^[0-9a-f]{16}$/), from: text, to: text };

/**
 * Which keys stand in which op is a matter of SD209; here, those that are there have their type.
 * @type {Reader}
 */
const part = (value, where) => {
  const known = fields({ op: text })(value, where);
  const coded = Object.keys(CODED).some((key) => value.has(key));
  for (const [key, read] of Object.entries(SINGLE)) {
    known[key] = value.has(key) ? read(value.get(key), `${where}.${key}`) : null;
  }
  return { ...known, coded, ...(coded ? fields(CODED)(value, where) : {}) };
};

const shaped = fields({ dtype: text, shape: list(whole) });
const layoutEnd = fields({
  files: list(fields({ name: text, header: whole, sha256: nullable(digest) })),
  index: nullable(fields({ name: text, blob: whole })),
});
const carried = fields({ blob: nullable(whole), digest, size: whole });

const manifest = fields({
  base: digest,
  target: digest,
  blobs: list(fields({ bytes: whole, size: whole, digest })),
  content: digest,
  files: list(fields({ name: text, base: nullable(carried), target: nullable(carried) })),
  invertible: flag,
  layout: nullable(fields({ base: nullable(layoutEnd), target: nullable(layoutEnd) })),
  lean: flag,
  metadata: texts,
  must_understand: list(text),
  nnz: whole,
  profile: formed(PROFILE),
  set: nullable(fields({
    id: digest,
    part: whole,
    parts: list(fields({ name: text, size: whole, manifest: digest })),
  })),
  tables: digest,
  tensors: list(fields({
    name: text,
    from: nullable(text),
    base: nullable(shaped),
    target: nullable(shaped),
    parts: list(part),
  })),
  untouched: list(text),
  version: formed(VERSION),
});

/**
 * One operation. `from`, `to`, `dtype` and `scale` are null where the part does not have them.
 * @typedef {{op: string, coded: boolean, nnz: number, block: number, index: Map<string, any>, value: Map<string, any>,
 *   bytes: number, dtype: string | null, scale: string | null, from: string | null, to: string | null}} Part
 *
 * @typedef {{dtype: string, shape: number[]}} Shaped
 *
 * @typedef {{name: string, from: string | null, base: Shaped | null, target: Shaped | null, parts: Part[]}} TensorRecord
 *
 * @typedef {{bytes: number, size: number, digest: string}} Blob
 *
 * @typedef {{files: {name: string, header: number, sha256: string | null}[],
 *   index: {name: string, blob: number} | null}} LayoutEnd
 *
 * @typedef {{blob: number | null, digest: string, size: number}} CarriedEnd
 *
 * @typedef {{name: string, base: CarriedEnd | null, target: CarriedEnd | null}} CarriedFile
 *
 * @typedef {{base: string, target: string, blobs: Blob[], content: string, files: CarriedFile[], invertible: boolean,
 *   layout: {base: LayoutEnd | null, target: LayoutEnd | null} | null, lean: boolean, metadata: Map<string, string>,
 *   must_understand: string[], nnz: number, profile: string,
 *   set: {id: string, part: number, parts: {name: string, size: number, manifest: string}[]} | null,
 *   tables: string, tensors: TensorRecord[], untouched: string[], version: string}} Manifest
 */

/**
 * @param {any} value canonical JSON, parsed
 * @returns {Manifest}
 */
export function readManifestTypes(value) {
  if (!(value instanceof Map)) {
    throw new RuleError("SD204", "the manifest is no object");
  }
  return manifest(value, "manifest");
}
