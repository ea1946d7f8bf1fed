#!/bin/sh
# Builds the four WASM modules: {simd128, relaxed SIMD} x {one thread, shared memory}; and inlay-reference, the scalar
# references beside the kernels, which only tests load.
#
#   EMXX=/path/to/em++ wasm/build.sh OUT_DIR GENERATED_DIR
#
# GENERATED_DIR holds headers made by tools/ (unicode_tables.h). Emscripten's JavaScript is thrown away: the
# loader is src/backend/wasm/module.ts, and threads are our own workers (src/backend/wasm/threads.ts).
set -eu
out=$1
generated=$2
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"

sources=$(find "$here" -name '*.cpp' ! -name '*_reference.cpp' | LC_ALL=C sort)
references=$(find "$here" -name '*_reference.cpp' | LC_ALL=C sort)

# -fno-math-errno and -ffp-contract=off: results must not depend on the compiler's choice of fused operations.
# -mllvm -disable-vector-combine: that pass turns arithmetic on a broadcast into a broadcast of scalar arithmetic, which in
# WebAssembly takes the long way through an integer register in the innermost loops.
# -sDECLARE_ASM_MODULE_EXPORTS=0: keep export names as they are, since our own loader binds them.
# -sMALLOC=emmalloc: small; the big blocks (weights, pages) are few and long-lived.
common="-std=c++20 -O3 -msimd128 -mbulk-memory -fno-exceptions -fno-rtti -fno-math-errno -ffp-contract=off
  -mllvm -disable-vector-combine
  -Wall -Wextra -Werror -I$here -I$generated
  --no-entry -sIMPORTED_MEMORY=1 -sALLOW_MEMORY_GROWTH=1 -sMAXIMUM_MEMORY=4GB -sSTACK_SIZE=262144
  -sMALLOC=emmalloc -sEXPORTED_FUNCTIONS=_malloc,_free,_memalign -sDECLARE_ASM_MODULE_EXPORTS=0
  -sENVIRONMENT=worker -sFILESYSTEM=0"
relaxed="-mrelaxed-simd -DINLAY_RELAXED=1"
# Wasm Workers: atomics, shared memory and thread-local storage without Emscripten's pthread runtime.
threads="-sWASM_WORKERS=1 -DINLAY_THREADS=1"

build() { # name flags...
  name=$1
  shift
  scratch=$(mktemp -d)
  # shellcheck disable=SC2086
  "$EMXX" $common "$@" $sources -o "$scratch/$name.js"
  mv "$scratch/$name.wasm" "$out/$name.wasm"
  rm -r "$scratch"
}

# shellcheck disable=SC2086
{
  build inlay-simd &
  first=$!
  build inlay-relaxed $relaxed &
  second=$!
  wait $first
  wait $second
  build inlay-simd-threads $threads &
  first=$!
  build inlay-relaxed-threads $relaxed $threads &
  second=$!
  wait $first
  wait $second
  sources=$references
  build inlay-reference
}
