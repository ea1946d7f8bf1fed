/** Numbers as people read them. */

const UNITS = ["bytes", "kB", "MB", "GB"] as const;

export function bytesText(n: number): string {
  const step = n < 1000 ? 0 : Math.min(UNITS.length - 1, Math.floor(Math.log10(n) / 3));
  const value = n / 1000 ** step;
  return `${step === 0 ? value : value.toFixed(value < 100 ? 1 : 0)} ${UNITS[step]}`;
}

export function rateText(tokensPerSecond: number | null): string {
  if (tokensPerSecond === null) return "not measured";
  return `${tokensPerSecond.toFixed(tokensPerSecond < 10 ? 1 : 0)} tokens/s`;
}

export function secondsText(seconds: number | null): string {
  return seconds === null ? "not measured" : `${seconds.toFixed(seconds < 10 ? 2 : 0)} s`;
}

export function tokensText(n: number): string {
  return n === 1 ? "1 token" : `${n.toLocaleString("en")} tokens`;
}
