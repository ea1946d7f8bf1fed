import { WasmAttention } from "/work/wt-squeeze/src/backend/wasm/wasm-attention.ts";
import { WasmOps } from "/work/wt-squeeze/src/backend/wasm/wasm-ops.ts";
import { measureSqueezed } from "/work/wt-squeeze/src/placement/measure-squeezed.ts";
import { instantiate } from "/work/wt-squeeze/test/fixtures/wasm.ts";

const HEADS = { nLayers: 1, nHeads: 9, nKvHeads: 3, headDim: 64 } as const;
const length = Number(process.argv[2] ?? 16384);
const med = (x: number[]) => [...x].sort((a, b) => a - b)[x.length >> 1]!;
for (const [format, cold] of [
  ["f32", undefined],
  ["f16", undefined],
  ["f32", "q4"],
  ["f32", "q2"],
] as const) {
  const ops = new WasmOps(await instantiate((process.argv[3] ?? "relaxed") as "relaxed"));
  const attention = new WasmAttention(ops, { ...HEADS, format });
  const r = await measureSqueezed({
    ops,
    attention,
    shape: { ...HEADS, window: [undefined] },
    cold,
    length,
    nTokens: 12,
    variants: [0.7, 0.8, 0.9]
      .map((sparsity) => ({ sparsity, isTwoLevel: false }))
      .concat([{ sparsity: 0.9, isTwoLevel: true }]),
  });
  console.log(format, cold, "cluster s", r.clusterSeconds.toFixed(2));
  for (const v of r.variants) {
    const d = med(v.dense),
      s = med(v.selection),
      a = med(v.attention);
    console.log(
      `  ${v.variant.sparsity}${v.variant.isTwoLevel ? " two" : ""}: dense ${d.toFixed(3)} sel ${s.toFixed(3)} att ${a.toFixed(3)} x${(d / (s + a)).toFixed(2)} selected ${(100 * v.selected).toFixed(1)}% pages ${(100 * v.inPages).toFixed(1)}%`,
    );
  }
}
