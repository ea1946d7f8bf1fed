// Hashing and comparing short byte strings, eight bytes at a time.
#pragma once

#include <cstdint>
#include <cstring>

namespace tok {

// A run of bytes owned by someone else. Not terminated.
struct Bytes {
  const uint8_t* data;
  uint32_t size;
};

inline uint64_t load_u64(const uint8_t* p) {
  uint64_t v;
  memcpy(&v, p, 8);
  return v;
}

inline uint32_t load_u32(const uint8_t* p) {
  uint32_t v;
  memcpy(&v, p, 4);
  return v;
}

// The last `n` bytes of a string, n < 8, as a number that differs when the bytes differ.
inline uint64_t load_tail(const uint8_t* p, uint32_t n) {
  if (n >= 4) return load_u32(p) | static_cast<uint64_t>(load_u32(p + n - 4)) << 32;
  if (n == 0) return 0;
  return p[0] | static_cast<uint64_t>(p[n / 2]) << 8 | static_cast<uint64_t>(p[n - 1]) << 16;
}

inline uint64_t mix(uint64_t h) {
  h *= 0x9e3779b97f4a7c15u;
  return h ^ h >> 32;
}

inline uint32_t hash_bytes(Bytes s) {
  uint64_t h = mix(s.size + 0x51ed270b);
  while (s.size >= 8) {
    h = mix(h ^ load_u64(s.data));
    s.data += 8;
    s.size -= 8;
  }
  return static_cast<uint32_t>(mix(h ^ load_tail(s.data, s.size)));
}

inline bool equal_bytes(const uint8_t* a, const uint8_t* b, uint32_t n) {
  for (; n >= 8; a += 8, b += 8, n -= 8)
    if (load_u64(a) != load_u64(b)) return false;
  return load_tail(a, n) == load_tail(b, n);
}

}  // namespace tok
