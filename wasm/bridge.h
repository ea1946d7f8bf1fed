// How the exported C ABI looks: plain C functions, named as in TypeScript, pointers as 32-bit offsets.
//
// A function that can fail returns 0 or a positive result on success and a negative Status on failure; the
// TypeScript side turns the status into an InlayError with the numbers it knows.
#pragma once

#include <cstdint>

#define INLAY_EXPORT(name) extern "C" __attribute__((export_name(#name)))

enum Status : int32_t {
  kOk = 0,
  kOutOfMemory = -1,
  kBadArgument = -2,
  kBadData = -3,  // the bytes of a model file or vocabulary are not what they claim to be
};
