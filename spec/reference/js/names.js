/**
 * Names of tensors (3.3), and names of files (3.6).
 */

import { ascending, utf8 } from "./bytes.js";
import { rule } from "./rules.js";

export const MOST_NAMES = 2 ** 20;

const CONTROL = /[\u0000-\u001f\u007f-\u009f]/;
const FILE_NAME = /^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,254}$/;
const RESERVED = /^(?:con|prn|aux|nul|com[0-9]|lpt[0-9])$/i;

/**
 * @typedef {import("./schema.js").Manifest} Manifest
 * @typedef {import("./schema.js").TensorRecord} TensorRecord
 */

/** @param {TensorRecord} record with or without a base tensor @returns {string} */
export function baseName(record) {
  return record.from ?? record.name;
}

/**
 * The rules for the names of all records of a delta, of one file or merged from all files of a set.
 * @param {TensorRecord[]} records
 * @param {string[]} untouched
 * @param {string} code `SD207`, or `SD603` for merged records
 */
export function checkDistinct(records, untouched, code) {
  const names = records.map((record) => record.name);
  const bases = records.map(baseName);
  rule(names.length + untouched.length <= MOST_NAMES, code, "more than 2^20 names");
  rule(new Set([...untouched, ...names]).size === untouched.length + names.length, code, "a name comes twice");
  rule(new Set([...untouched, ...bases]).size === untouched.length + bases.length, code, "a base name comes twice");
}

/**
 * SD207.
 * @param {Manifest} manifest
 */
export function checkNames(manifest) {
  const { tensors, untouched, lean } = manifest;
  for (const name of untouched) {
    checkName(name);
  }
  for (const record of tensors) {
    const copies = record.parts.flatMap((part) => [part.from, part.to]);
    for (const name of [record.name, record.from, ...copies]) {
      if (name !== null) {
        checkName(name);
      }
    }
    const rename = record.base !== null && record.target !== null && record.from !== record.name;
    rule(record.from === null || rename, "SD207", `${record.name} is no rename`);
  }
  rule(ascending(untouched), "SD207", "the untouched names do not ascend");
  rule(ascending(tensors.map((record) => record.name)), "SD207", "the names of the records do not ascend");
  checkDistinct(tensors, untouched, "SD207");
  rule(!lean || untouched.length === 0, "SD207", "a lean delta with untouched names");
}

/** @param {string} name */
function checkName(name) {
  const bytes = utf8(name).length;
  rule(bytes >= 1 && bytes <= 1024 && !CONTROL.test(name), "SD207", `${JSON.stringify(name)} is no name`);
}

/** @param {string} name @returns {boolean} whether it is a file name as section 3.6 has it */
export function isFileName(name) {
  return FILE_NAME.test(name) && !name.endsWith(".") && !RESERVED.test(name.split(".", 1)[0]);
}

/** @param {string[]} names @returns {boolean} whether they differ from each other even where case is ignored */
export function differIgnoringCase(names) {
  return new Set(names.map((name) => name.toLowerCase())).size === names.length;
}
