/** Command lines: options with types and bounds. A mistake is a UsageError: printed with the usage, exit status 2. */

import { parseArgs } from "node:util";

export class UsageError extends Error {}

type OptionType = "string" | "boolean" | "number" | "integer";

/** Options of one command by name; all are optional. */
export type OptionTypes = Readonly<Record<string, OptionType>>;

type ValueOf<T extends OptionType> = T extends "string" ? string : T extends "boolean" ? boolean : number;

/** What was given. */
export type Options<T extends OptionTypes> = { readonly [K in keyof T]?: ValueOf<T[K]> | undefined };

/** Reads `--name value`, `--name=value` and flags; the rest are positionals, exactly as many as `positionals` names. */
export function readArguments<T extends OptionTypes>(
  args: readonly string[],
  types: T,
  positionals: readonly string[],
): { options: Options<T>; positionals: string[] } {
  let parsed: { values: Record<string, unknown>; positionals: string[] };
  try {
    parsed = parseArgs({
      args: [...args],
      allowPositionals: true,
      strict: true,
      options: Object.fromEntries(
        Object.entries(types).map(([name, type]) => [name, { type: type === "boolean" ? type : "string" }]),
      ),
    });
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
  if (parsed.positionals.length !== positionals.length)
    throw new UsageError(
      `expected ${positionals.join(" ") || "no arguments"}, found ${parsed.positionals.length} argument(s)`,
    );
  const options: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(parsed.values)) {
    const type = types[name]!;
    options[name] = type === "number" || type === "integer" ? toNumber(name, value as string, type) : value;
  }
  return { options: options as Options<T>, positionals: parsed.positionals };
}

/** A comma-separated list of whole numbers at or above `least`. */
export function integerList(name: string, text: string, least: number): number[] {
  return text.split(",").map((item) => {
    const n = toNumber(name, item.trim(), "integer");
    if (n < least) throw new UsageError(`--${name} has ${n}; the least is ${least}`);
    return n;
  });
}

function toNumber(name: string, text: string, type: "number" | "integer"): number {
  const value = text.trim() === "" ? Number.NaN : Number(text);
  const fits = type === "integer" ? Number.isSafeInteger(value) : Number.isFinite(value);
  if (fits) return value;
  throw new UsageError(
    `--${name} is ${JSON.stringify(text)}; it must be ${type === "integer" ? "a whole number" : "a number"}`,
  );
}
