// A growable array of plain values that survives running out of memory.
//
// Growth never aborts. When the heap refuses, `failed` is set, the values pushed from then on are dropped, and
// whoever filled the array asks once at the end. Elements are copied bytewise and not initialised.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace tok {

template <typename T>
class Array {
 public:
  Array() = default;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { free(data_); }

  // Room for `n` elements in all. False when the heap refuses.
  bool reserve(uint32_t n) {
    if (n <= capacity_) return true;
    T* grown = n > UINT32_MAX / sizeof(T) ? nullptr : static_cast<T*>(realloc(data_, n * sizeof(T)));
    if (!grown) {
      failed_ = true;
      return false;
    }
    data_ = grown;
    capacity_ = n;
    return true;
  }

  // Room for `n` more elements. False when the heap refuses.
  bool reserve_more(uint32_t n) { return n <= capacity_ - size_ || grow(n); }

  // Sets the length. False, and the length unchanged, when the heap refuses.
  bool resize(uint32_t n) {
    if (!reserve(n)) return false;
    size_ = n;
    return true;
  }

  void push(T value) {
    if (!reserve_more(1)) return;
    data_[size_++] = value;
  }

  void append(const T* values, uint32_t n) {
    if (!reserve_more(n)) return;
    T* out = data_ + size_;
    for (uint32_t i = 0; i < n; i++) out[i] = values[i];
    size_ += n;
  }

  void pop() { size_--; }
  void clear() { size_ = 0; }

  // Forgets the elements, a failure, and whatever the heap lent beyond `keep_bytes`.
  void trim(uint32_t keep_bytes) {
    size_ = 0;
    failed_ = false;
    if (capacity_ * sizeof(T) <= keep_bytes) return;
    free(data_);
    data_ = nullptr;
    capacity_ = 0;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  uint32_t size() const { return size_; }
  bool failed() const { return failed_; }
  T& operator[](uint32_t i) { return data_[i]; }
  const T& operator[](uint32_t i) const { return data_[i]; }

 private:
  bool grow(uint32_t n) {
    if (failed_) return false;  // asking again for every element would take forever
    if (n > UINT32_MAX - size_) {
      failed_ = true;
      return false;
    }
    const uint32_t needed = size_ + n;
    const uint32_t doubled = capacity_ > UINT32_MAX / 2 ? UINT32_MAX : capacity_ * 2;
    const uint32_t wanted = doubled < 16 ? 16 : doubled;
    return reserve(wanted > needed ? wanted : needed);
  }

  T* data_ = nullptr;
  uint32_t size_ = 0;
  uint32_t capacity_ = 0;
  bool failed_ = false;
};

}  // namespace tok
