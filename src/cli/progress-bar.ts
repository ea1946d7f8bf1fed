/** A progress bar on standard error, if that is a terminal. */

const WIDTH = 30;

export class ProgressBar {
  #isShown = false;

  constructor(private readonly isEnabled = process.stderr.isTTY === true) {}

  /** `progress`: 0 to 1. */
  update(label: string, progress: number): void {
    if (!this.isEnabled) return;
    const filled = Math.round(progress * WIDTH);
    const bar = "█".repeat(filled) + "░".repeat(WIDTH - filled);
    process.stderr.write(`\r${label} ${bar} ${String(Math.floor(progress * 100)).padStart(3)} %\x1b[K`);
    this.#isShown = true;
  }

  /** Removes the bar. */
  clear(): void {
    if (this.#isShown) process.stderr.write("\r\x1b[K");
    this.#isShown = false;
  }
}
