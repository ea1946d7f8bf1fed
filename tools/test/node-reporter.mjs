// A reporter for `node --test`: records each test, prints a line per file.

import path from "node:path";
import { inspect } from "node:util";
import { fileLine, record } from "./results.mjs";

const SUITE = "node";

/** The error that the test threw; the test runner wraps it in one of its own. */
function errorText({ error }) {
  const cause = error.cause ?? error;
  return typeof cause === "string" ? cause : (cause.stack ?? inspect(cause));
}

/** A suite's or parent test's own line says nothing that its children's do not. */
function isEmptyParent({ skip, details }) {
  if (skip !== undefined) return false;
  return details.error?.failureType === "subtestsFailed" || (details.type === "suite" && !details.error);
}

/** The result of a test that passed, failed or was skipped; `names` are those of the suites around it. */
function resultOf({ type, data }, file, names) {
  const name = [...names, data.name].join(" › ");
  const result = { suite: SUITE, file, name, status: "passed", ms: data.details.duration_ms };
  // The file as a whole is reported as a test when it crashed or has no tests in it.
  const isFile = data.nesting === 0 && path.resolve(data.name) === data.file;
  if (data.skip !== undefined || data.todo !== undefined) {
    const reason = data.skip ?? data.todo;
    result.status = "skipped";
    result.detail = `${data.skip === undefined ? "to do: " : ""}${reason === true ? "" : reason}`;
  } else if (isFile) {
    result.status = "failed";
    result.name = "(the file)";
    result.detail = type === "test:pass" ? "there is no test in it" : "it crashed; its output is above";
  } else if (type === "test:fail") {
    result.status = "failed";
    result.detail = errorText(data.details);
  }
  return result;
}

/** Starts, passes and failures arrive in the order of the files and of the tests in them, as node:test promises. */
export default async function* report(events) {
  let current = { file: undefined, results: [], names: [] };
  const line = ({ file, results }) => (results.length > 0 ? `${fileLine(SUITE, file, results)}\n` : "");
  for await (const event of events) {
    const { type, data } = event;
    if (type === "test:stdout" || type === "test:stderr") yield data.message;
    // An error thrown after its test had ended arrives as a message, and makes the file fail.
    if (type === "test:diagnostic" && /^(Error|Warning): /.test(data.message)) yield `${data.message}\n`;
    if (type !== "test:start" && type !== "test:pass" && type !== "test:fail") continue;

    const file = path.relative(process.cwd(), data.file);
    if (file !== current.file) {
      yield line(current);
      current = { file, results: [], names: [] };
    }
    if (type === "test:start") current.names[data.nesting] = data.name;
    else if (!isEmptyParent(data)) {
      const result = resultOf(event, file, current.names.slice(0, data.nesting));
      current.results.push(result);
      record(result);
    }
  }
  yield line(current);
  record({ done: true });
}
