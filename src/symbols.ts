/**
 * `Symbol.dispose` and `Symbol.asyncDispose` where the browser lacks them (WebKit before 2026). Classes use them as
 * method names, so every entry imports this file before anything else.
 */

const symbols: { dispose?: symbol; asyncDispose?: symbol } = Symbol;
symbols.dispose ??= Symbol.for("Symbol.dispose");
symbols.asyncDispose ??= Symbol.for("Symbol.asyncDispose");

export {};
