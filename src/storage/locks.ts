/** Web Locks: they hold between tabs, and a worker that dies gives up its own. */

/** Waits for the lock; the result gives it back. Rejects with the signal's reason. */
export function acquireLock(name: string, mode: LockMode, signal?: AbortSignal): Promise<() => void> {
  return new Promise((resolve, reject) => {
    const options = signal ? { mode, signal } : { mode };
    navigator.locks
      .request(name, options, () => new Promise<void>((release) => resolve(() => release())))
      .catch((error: unknown) => reject(signal?.aborted ? signal.reason : error));
  });
}

/** Runs `f` with the lock if nobody has it now; tells whether it did. */
export async function ifUnlocked(name: string, f: () => Promise<void>): Promise<boolean> {
  return await navigator.locks.request(name, { ifAvailable: true }, async (lock) => {
    if (!lock) return false;
    await f();
    return true;
  });
}
