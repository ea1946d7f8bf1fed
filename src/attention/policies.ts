/** Policies by the names that options use. */

import { DensePolicy } from "./dense.ts";
import { DhsaPolicy } from "./dhsa.ts";
import type { PolicyName } from "./names.ts";
import type { AttentionShape, SelectionPolicy } from "./policy.ts";
import { SamplePolicy } from "./sample.ts";
import { VerticalSlashPolicy } from "./vertical-slash.ts";
import { WindowPolicy } from "./window.ts";

/** A policy for one model. `scale` is that of its attention scores. */
export function createPolicy(name: PolicyName, shape: AttentionShape, scale: number): SelectionPolicy {
  switch (name) {
    case "dense":
      return new DensePolicy(shape);
    case "window":
      return new WindowPolicy(shape);
    case "dhsa":
      return new DhsaPolicy(shape);
    case "vertical-slash":
      return new VerticalSlashPolicy(shape, scale);
    case "sample":
      return new SamplePolicy(shape);
  }
}
