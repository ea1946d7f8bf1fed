/** The tensor table of a GGUF header: shapes, types and places, all checked. */

import { InlayError } from "../errors.ts";
import type { HeaderCursor } from "./header-cursor.ts";
import type { TensorInfo } from "./tensor-info.ts";
import { otherTypeName, TENSOR_TYPES, type TensorType, tensorTypeById } from "./tensor-types.ts";

/** ggml allows 63; some forks more. */
const MAX_NAME_BYTES = 255;
const MAX_DIMS = 4;

/** An entry whose offset still counts from the start of the tensor data. */
type UnplacedTensor = Omit<TensorInfo, "offset"> & { readonly dataOffset: number };

/** Reads `nTensors` entries. */
export async function readTensorTable(
  cursor: HeaderCursor,
  nTensors: number,
  shard: number,
): Promise<UnplacedTensor[]> {
  const table = new Map<string, UnplacedTensor>();
  for (let i = 0; i < nTensors; i++) {
    const name = await cursor.string(`the name of tensor ${i} of ${nTensors}`, MAX_NAME_BYTES, true);
    if (table.has(name)) throw cursor.invalid(`the tensor ${name} occurs twice`, { tensor: name });
    table.set(name, await readEntry(cursor, name, shard));
  }
  return [...table.values()];
}

async function readEntry(cursor: HeaderCursor, name: string, shard: number): Promise<UnplacedTensor> {
  const nDims = await cursor.u32(`the number of dimensions of ${name}`);
  if (nDims < 1 || nDims > MAX_DIMS) {
    throw cursor.invalid(`${name} has ${nDims} dimensions; 1 to ${MAX_DIMS} are possible`, { tensor: name });
  }
  const dims: number[] = [];
  for (let d = 0; d < nDims; d++) {
    dims.push(await cursor.count(`dimension ${d} of ${name}`, Number.MAX_SAFE_INTEGER));
  }
  if (dims.includes(0))
    throw cursor.invalid(`${name} has the shape [${dims}]; no dimension may be 0`, { tensor: name });
  const type = runnableType(cursor, name, await cursor.u32(`the type of ${name}`));
  const dataOffset = await cursor.count(`the offset of ${name}`, Number.MAX_SAFE_INTEGER);

  const cols = dims[0]!;
  const rows = dims.slice(1).reduce((product, dim) => product * dim, 1);
  if (cols % type.blockElements !== 0) {
    throw cursor.invalid(
      `${name} has rows of ${cols} elements; ${type.name} needs a multiple of ${type.blockElements}`,
      { tensor: name },
    );
  }
  const byteLength = rows * (cols / type.blockElements) * type.blockBytes;
  if (!Number.isSafeInteger(rows * cols) || !Number.isSafeInteger(dataOffset + byteLength)) {
    throw cursor.invalid(`${name} has the shape [${dims}], more elements than any file can hold`, {
      tensor: name,
    });
  }
  return { name, dims, type, dataOffset, byteLength, rows, cols, shard };
}

function runnableType(cursor: HeaderCursor, tensor: string, id: number): TensorType {
  const type = tensorTypeById(id);
  if (type) return type;
  const runnable = TENSOR_TYPES.map((t) => t.name).join(", ");
  throw new InlayError(
    "unsupported-model",
    `${cursor.fileName}: the tensor ${tensor} has ggml type ${id} (${otherTypeName(id) ?? "unknown"}); ` +
      `types that can be run: ${runnable}. Choose a file in one of these, such as Q4_0 or Q4_K_M`,
    { tensor, type: id },
  );
}

/**
 * Makes offsets absolute and sorts by them. Throws when a tensor is misaligned, overlaps another, or reaches past
 * the end of the file (checked here when its size is known, otherwise when the bytes run out).
 */
export function placeTensors(
  cursor: HeaderCursor,
  table: readonly UnplacedTensor[],
  dataStart: number,
  alignment: number,
): TensorInfo[] {
  const tensors = table.map(({ dataOffset, ...tensor }) => ({ ...tensor, offset: dataStart + dataOffset }));
  tensors.sort((a, b) => a.offset - b.offset);
  let end = dataStart;
  let previous = "the header";
  for (const { name, offset, byteLength } of tensors) {
    if (offset % alignment !== 0) {
      throw cursor.invalid(`${name} begins at byte ${offset}, not at a multiple of ${alignment}`, {
        tensor: name,
      });
    }
    if (offset < end) {
      throw cursor.invalid(
        `${name} begins at byte ${offset}, inside ${previous}, which ends at byte ${end}`,
        {
          tensor: name,
        },
      );
    }
    end = offset + byteLength;
    previous = name;
  }
  const size = cursor.fileSize;
  if (size !== undefined && end > size && tensors.length > 0) {
    throw cursor.invalid(
      `the file has ${size} bytes, but ${previous} reaches to byte ${end}; the download is incomplete`,
      { tensor: previous, expected: end, size },
    );
  }
  return tensors;
}
