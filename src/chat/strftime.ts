/**
 * Dates for chat templates: Python's `datetime.strftime` in the C locale, in local time.
 * (The template library would take the visitor's language for month names, and the prompt would change with it.)
 */

const MONTHS = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
] as const;
const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"] as const;

const pad = (value: number, width = 2) => String(value).padStart(width, "0");

const DIRECTIVES: Readonly<Record<string, (date: Date) => string>> = {
  "%": () => "%",
  A: (date) => DAYS[date.getDay()]!,
  a: (date) => DAYS[date.getDay()]!.slice(0, 3),
  B: (date) => MONTHS[date.getMonth()]!,
  b: (date) => MONTHS[date.getMonth()]!.slice(0, 3),
  d: (date) => pad(date.getDate()),
  H: (date) => pad(date.getHours()),
  I: (date) => pad(date.getHours() % 12 || 12),
  j: (date) => pad(dayOfYear(date), 3),
  M: (date) => pad(date.getMinutes()),
  m: (date) => pad(date.getMonth() + 1),
  p: (date) => (date.getHours() < 12 ? "AM" : "PM"),
  S: (date) => pad(date.getSeconds()),
  w: (date) => String(date.getDay()),
  Y: (date) => String(date.getFullYear()),
  y: (date) => pad(date.getFullYear() % 100),
};

/** Formats `date`. `%-d` and the like leave out leading zeros. Throws for a directive it does not know. */
export function strftime(date: Date, format: string): string {
  return format.replace(/%(-?)([\s\S]?)/g, (directive, minus: string, letter: string) => {
    const expand = DIRECTIVES[letter];
    if (!expand) throw new Error(`strftime: unknown directive ${JSON.stringify(directive)}`);
    const text = expand(date);
    return minus === "" ? text : text.replace(/^0+(?=\d)/, "");
  });
}

function dayOfYear(date: Date): number {
  const midnightUtc = (day: number, month: number) => Date.UTC(date.getFullYear(), month, day);
  return (midnightUtc(date.getDate(), date.getMonth()) - midnightUtc(1, 0)) / 86_400_000 + 1;
}
