/** Files with one thing wrong, and files that are something else: every one is refused with a message that says what. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { ByteReader } from "../../src/gguf/byte-reader.ts";
import { bytesSource } from "../../src/gguf/local-sources.ts";
import { readHeader } from "../../src/gguf/reader.ts";
import { damagedGguf, type PatchableGguf } from "../fixtures/gguf-patch.ts";

const headerOf = (bytes: Uint8Array) => readHeader(new ByteReader(bytesSource(bytes, "test.gguf")));

const HUGE = 2n ** 60n;

/** One thing wrong each; `control` is the same file undamaged. */
const DAMAGES: {
  name: string;
  damage: (file: PatchableGguf) => void;
  message: RegExp;
  code?: string;
}[] = [
  {
    name: "version 1",
    damage: (f) => f.u32("version", 1),
    message: /version 1; versions 2 and 3/,
    code: "unsupported-model",
  },
  { name: "version 4", damage: (f) => f.u32("version", 4), message: /version 4/, code: "unsupported-model" },
  {
    name: "big-endian",
    damage: (f) => f.u32("version", 0x03000000),
    message: /big-endian/,
    code: "unsupported-model",
  },
  {
    name: "2^60 tensors",
    damage: (f) => f.u64("tensorCount", HUGE),
    message: /number of tensors is 1152921504606846976, the limit is 65535/,
  },
  {
    name: "2^60 keys",
    damage: (f) => f.u64("keyCount", HUGE),
    message: /number of metadata keys is 1152921504606846976/,
  },
  { name: "more keys than there are", damage: (f) => f.u64("keyCount", 500), message: /test\.gguf: / },
  {
    name: "2^60 bytes of key",
    damage: (f) => f.u64("key:general.name", HUGE),
    message: /length of metadata key 1 of \d+ is 1152921504606846976, the limit is 65535/,
  },
  {
    name: "2^60 bytes of string",
    damage: (f) => f.u64("value:general.name", HUGE),
    message: /length of general\.name is 1152921504606846976/,
  },
  {
    name: "a string past the end",
    damage: (f) => f.u64("value:general.name", 1 << 23),
    message: /general\.name reaches to byte \d+; the download is incomplete/,
  },
  {
    name: "value type 13",
    damage: (f) => f.u32("type:general.name", 13),
    message: /general\.name has value type 13/,
  },
  {
    name: "element type 13",
    damage: (f) => f.u32("value:tokenizer.ggml.tokens", 13),
    message: /tokens has value type 13/,
  },
  {
    name: "an array of arrays",
    damage: (f) => f.u32("value:tokenizer.ggml.tokens", 9),
    message: /tokens is an array of arrays/,
  },
  {
    name: "a boolean of 2",
    damage: (f) => f.u8("value:tokenizer.ggml.add_bos_token", 2),
    message: /add_bos_token holds a boolean with the value 2/,
  },
  {
    name: "a key that is not UTF-8",
    damage: (f) => f.bytes.set([0xff], f.at("key:general.name") + 8),
    message: /metadata key 1 of \d+ is not UTF-8 \(bytes ff 65/,
  },
  {
    name: "a key twice",
    damage: (f) => f.bytes.set([0x62], f.at("key:tokenizer.ggml.eos_token_id") + 8 + 15),
    message: /the metadata key tokenizer\.ggml\.bos_token_id occurs twice/,
  },
  {
    name: "alignment 0",
    damage: (f) => f.u32("value:general.alignment", 0),
    message: /general\.alignment is 0; it must be a power of two/,
  },
  {
    name: "alignment 48",
    damage: (f) => f.u32("value:general.alignment", 48),
    message: /general\.alignment is 48/,
  },
  {
    name: "alignment 2^31",
    damage: (f) => f.u32("value:general.alignment", 2 ** 31),
    message: /general\.alignment is 2147483648/,
  },
  {
    name: "2^60 bytes of tensor name",
    damage: (f) => f.u64("name:output_norm.weight", HUGE),
    message: /length of the name of tensor 1 of \d+ is 1152921504606846976, the limit is 255/,
  },
  {
    name: "a tensor twice",
    damage: (f) => f.bytes.set([0x31], f.at("name:blk.0.attn_q.weight") + 8 + 4),
    message: /the tensor blk\.1\.attn_q\.weight occurs twice/,
  },
  {
    name: "no dimensions",
    damage: (f) => f.u32("nDims:output_norm.weight", 0),
    message: /output_norm\.weight has 0 dimensions/,
  },
  {
    name: "5 dimensions",
    damage: (f) => f.u32("nDims:output_norm.weight", 5),
    message: /has 5 dimensions; 1 to 4/,
  },
  {
    name: "a dimension of 0",
    damage: (f) => f.u64("dim0:output_norm.weight", 0),
    message: /shape \[0\]; no dimension may be 0/,
  },
  {
    name: "a dimension of 2^60",
    damage: (f) => f.u64("dim0:output_norm.weight", HUGE),
    message: /dimension 0 of output_norm\.weight is 1152921504606846976/,
  },
  {
    name: "dimensions whose product overflows",
    damage: (f) => {
      f.u64("dim0:token_embd.weight", 2 ** 32);
      f.u64("dim1:token_embd.weight", 2 ** 40);
    },
    message: /token_embd\.weight has the shape \[4294967296,1099511627776\]/,
  },
  {
    name: "rows that are no whole blocks",
    damage: (f) => f.u64("dim0:token_embd.weight", 63),
    message: /rows of 63 elements; Q8_0 needs a multiple of 32/,
  },
  {
    name: "a type ggml has",
    damage: (f) => f.u32("tensorType:token_embd.weight", 17),
    message: /token_embd\.weight has ggml type 17 \(IQ2_XS\); types that can be run: F32, F16/,
    code: "unsupported-model",
  },
  {
    name: "a type nobody knows",
    damage: (f) => f.u32("tensorType:token_embd.weight", 999),
    message: /ggml type 999 \(unknown\)/,
    code: "unsupported-model",
  },
  {
    name: "a misaligned tensor",
    damage: (f) => f.u64("offset:blk.0.attn_k.weight", 4),
    message: /blk\.0\.attn_k\.weight begins at byte \d+, not at a multiple of 32/,
  },
  {
    name: "overlapping tensors",
    damage: (f) => f.u64("offset:blk.0.attn_k.weight", 0),
    message: /begins at byte \d+, inside \S+, which ends at byte \d+/,
  },
  {
    name: "a tensor past the end",
    damage: (f) => f.u64("offset:blk.1.ffn_down.weight", 2 ** 40),
    message: /blk\.1\.ffn_down\.weight reaches to byte \d+; the download is incomplete/,
  },
  {
    name: "an offset of 2^60",
    damage: (f) => f.u64("offset:blk.1.ffn_down.weight", HUGE),
    message: /the offset of blk\.1\.ffn_down\.weight is 1152921504606846976/,
  },
  {
    name: "half of the data",
    damage: (f) => f.truncate(f.bytes.byteLength / 2),
    message: /the download is incomplete/,
  },
  {
    name: "half of the header",
    damage: (f) => f.truncate(1000),
    message: /the file has 1000 bytes, but .* the download is incomplete/,
  },
  {
    name: "ten bytes",
    damage: (f) => f.truncate(10),
    message: /the file has 10 bytes, but the number of tensors reaches to byte 16/,
  },
  { name: "nothing", damage: (f) => f.truncate(0), message: /not a GGUF file: it is empty/ },
];

const damaged = (damage: (file: PatchableGguf) => void) =>
  damagedGguf(damage, "tiny-llama", { type: "Q8_0", metadata: [["general.alignment", "u32", 32]] });

test("damage, control: the undamaged file is read", async () => {
  await headerOf(damaged(() => {}));
});

for (const { name, damage, message, code = "invalid-model" } of DAMAGES) {
  test(`damage: ${name}`, async () => {
    await assert.rejects(headerOf(damaged(damage)), { name: "InlayError", code, message });
  });
}

const FOREIGN: { name: string; start: string | number[]; message: RegExp }[] = [
  {
    name: "a web page",
    start: "<!DOCTYPE html><html>",
    message: /it is a web page\. Check the address: .*\/resolve\//,
  },
  {
    name: "a Git LFS pointer",
    start: "version https://git-lfs.github.com/spec/v1\n",
    message: /Git LFS pointer/,
  },
  { name: "a GGJT file", start: "tjgg\u0003\u0000\u0000\u0000", message: /older ggml format/ },
  { name: "safetensors", start: [9, 0, 0, 0, 0, 0, 0, 0, ...Buffer.from('{"a":1}')], message: /safetensors/ },
  { name: "a PyTorch checkpoint", start: "PK\u0003\u0004\u0000", message: /ZIP archive/ },
  {
    name: "an error message",
    start: '{"error":"Not found"}',
    message: /JSON, perhaps an error message: {"error":"Not found"}/,
  },
  { name: "anything else", start: [1, 2, 255], message: /starts with the bytes 01 02 ff instead of "GGUF"/ },
];

for (const { name, start, message } of FOREIGN) {
  test(`not a GGUF file: ${name}`, async () => {
    const bytes = typeof start === "string" ? Buffer.from(start, "latin1") : Uint8Array.from(start);
    await assert.rejects(headerOf(new Uint8Array(bytes)), { code: "invalid-model", message });
  });
}
