/** The `inlay` command. Exit status: 0, 1 for an InlayError, 2 for a usage error. */

import { InlayError } from "../errors.ts";
import { UsageError } from "./arguments.ts";
import { BENCH_USAGE, bench } from "./bench.ts";
import { EVAL_USAGE, evaluate } from "./eval.ts";
import { INSPECT_USAGE, inspect } from "./inspect.ts";
import { PIN_USAGE, pin } from "./pin.ts";
import { RUN_USAGE, run } from "./run.ts";
import { DETOKENIZE_USAGE, detokenize, TOKENIZE_USAGE, tokenize } from "./vocabulary.ts";

interface Command {
  readonly usage: string;
  execute(args: readonly string[], signal: AbortSignal): Promise<void>;
}

const COMMANDS: Readonly<Record<string, Command>> = {
  run: { usage: RUN_USAGE, execute: run },
  tokenize: { usage: TOKENIZE_USAGE, execute: tokenize },
  detokenize: { usage: DETOKENIZE_USAGE, execute: detokenize },
  inspect: { usage: INSPECT_USAGE, execute: inspect },
  pin: { usage: PIN_USAGE, execute: pin },
  bench: { usage: BENCH_USAGE, execute: bench },
  eval: { usage: EVAL_USAGE, execute: evaluate },
};

const USAGE =
  `usage:\n${Object.values(COMMANDS)
    .map(({ usage }) => `  ${usage}\n`)
    .join("")}` +
  "MODEL is a GGUF file: a path, a URL, or hf:owner/name/file.gguf. Errors go to standard error; with --json\n" +
  "also as { error: { code, message, details } } to standard output.\n";

async function main(args: readonly string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === undefined || name === "help" || name === "--help" || name === "-h") {
    process.stdout.write(USAGE);
    return name === undefined ? 2 : 0;
  }
  const command = COMMANDS[name];
  if (!command) {
    process.stderr.write(`inlay: unknown command ${name}\n${USAGE}`);
    return 2;
  }
  const controller = new AbortController();
  const onInterrupt = () => controller.abort(new DOMException("interrupted", "AbortError"));
  process.once("SIGINT", onInterrupt);
  try {
    await command.execute(rest, controller.signal);
    return 0;
  } catch (error) {
    return report(error, command, rest.includes("--json"), controller.signal);
  } finally {
    process.off("SIGINT", onInterrupt);
  }
}

/** Says what went wrong; returns the exit status. */
function report(error: unknown, command: Command, isJson: boolean, signal: AbortSignal): number {
  if (signal.aborted && error === signal.reason) {
    process.stderr.write("\ninlay: interrupted\n");
    return 130;
  }
  if (error instanceof UsageError) {
    process.stderr.write(`inlay: ${error.message}\nusage: ${command.usage}\n`);
    return 2;
  }
  if (!(error instanceof InlayError)) throw error;
  const { code, message, details } = error;
  process.stderr.write(`inlay: ${message} [${code}]\n`);
  if (isJson) process.stdout.write(`${JSON.stringify({ error: { code, message, details } })}\n`);
  return 1;
}

// A closed pipe (`inlay run … | head`) is no error.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
  process.exit(0);
});

process.exitCode = await main(process.argv.slice(2));
