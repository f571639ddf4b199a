/**
 * Broken rules. Everything that this reader refuses, it refuses with the code of a rule of section 9.
 */

/** A rule of section 9 is broken. */
export class RuleError extends Error {
  /**
   * @param {string} code the code of the rule, such as `SD201`
   * @param {string} reason what was found, for a person
   */
  constructor(code, reason) {
    super(`${code}: ${reason}`);
    this.name = "RuleError";
    this.code = code;
    this.reason = reason;
  }
}

/**
 * Refuses unless a condition holds.
 * @param {boolean} holds
 * @param {string} code
 * @param {string} reason
 */
export function rule(holds, code, reason) {
  if (!holds) {
    throw new RuleError(code, reason);
  }
}

/**
 * Runs something that takes much memory: what this machine does not have is a budget that is exceeded, not a crash.
 * @template T
 * @param {() => T} work
 * @returns {T}
 */
export function withinMemory(work) {
  try {
    return work();
  } catch (error) {
    if (error instanceof RangeError) {
      throw new RuleError("SD504", `not enough memory: ${error.message}`);
    }
    throw error;
  }
}
