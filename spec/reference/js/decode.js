/**
 * The reader as a library and as a command.
 *
 *     node spec/reference/js/decode.js FILE
 *
 * prints the delta as JSON, or the code and the reason of the first broken rule on stderr, with exit status 3.
 */

import { readFileSync, realpathSync, statSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { readDelta } from "./delta.js";
import { describe } from "./describe.js";
import { RuleError, withinMemory } from "./rules.js";

export { apply, fingerprintOf, revert, tensorDigests } from "./apply.js";
export { readDelta } from "./delta.js";
export { describe } from "./describe.js";
export { carriedFiles, layOut } from "./layout.js";
export { resolve } from "./resolve.js";
export { RuleError } from "./rules.js";

/**
 * Reads a delta, and the part files that lie beside it.
 * @param {string} file
 * @returns {import("./delta.js").Delta}
 */
export function readFile(file) {
  const folder = path.dirname(file);
  return readDelta(withinMemory(() => readFileSync(file)), (name) => {
    // The name has been checked: it is one of a file in this folder, and nothing else.
    const beside = path.join(folder, name);
    const isFile = statSync(beside, { throwIfNoEntry: false })?.isFile() ?? false;
    return isFile ? readFileSync(beside) : null;
  });
}

/** @param {string[]} argv @returns {number} the exit status */
function main(argv) {
  if (argv.length !== 1) {
    process.stderr.write("usage: node decode.js FILE\n");
    return 2;
  }
  try {
    process.stdout.write(`${JSON.stringify(describe(readFile(argv[0])), null, 1)}\n`);
    return 0;
  } catch (error) {
    if (error instanceof RuleError) {
      process.stderr.write(`${error.message}\n`);
      return 3;
    }
    if (error instanceof Error && "syscall" in error) {
      process.stderr.write(`${error.message}\n`);
      return 2;
    }
    throw error;
  }
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  process.exitCode = main(process.argv.slice(2));
}
