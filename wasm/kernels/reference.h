// What the scalar references (*_reference.cpp) share. They are built into the test-only module inlay-reference.wasm.
#pragma once

#include <cstdint>

// Weight (row, col) of a matrix in the file's block layout, exactly.
double reference_weight(uint32_t type, const uint8_t* w, int cols, int row, int col);
