// Vectors of floats, and the sum that all sparse kernels of few images are made of.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t kLanes = 16;
typedef float Lanes __attribute__((vector_size(4 * kLanes), aligned(4)));

inline Lanes Load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }
inline void Store(float* to, Lanes lanes) { *reinterpret_cast<Lanes*>(to) = lanes; }

typedef int32_t Masks __attribute__((vector_size(4 * kLanes), aligned(4)));

// `one` where the mask is set, else `other`.
inline Lanes Choose(Masks mask, Lanes one, Lanes other) {
  return (Lanes)((mask & (Masks)one) | (~mask & (Masks)other));
}
// The larger value, or NaN if one of both is.
inline Lanes Larger(Lanes a, Lanes b) { return Choose((a > b) | (a != a), a, b); }

// Sums of `Parts` vectors that lie one after the other. Recursive, so that compilers keep them in
// registers: arrays of vectors go through memory.
template <int Parts>
struct Sums {
  Lanes first = {};
  Sums<Parts - 1> rest;
  void Add(float value, const float* from) {
    first += value * Load(from);
    rest.Add(value, from + kLanes);
  }
  void Put(float* to) const {
    Store(to, first);
    rest.Put(to + kLanes);
  }
};
template <>
struct Sums<0> {
  void Add(float, const float*) {}
  void Put(float*) const {}
};

template <int Parts>
void AddPart(const float* values, const float* from, const int64_t* offsets, int64_t begin,
             int64_t end, float* to) {
  Sums<Parts> sums;
  for (int64_t k = begin; k < end; ++k) sums.Add(values[k], from + offsets[k]);
  sums.Put(to);
}

// to[i] = sum over weights begin to end of value * from[offset + i], for i < count. Reads and writes
// up to 4 * kLanes floats beyond that.
inline void AddStretch(const float* values, const float* from, const int64_t* offsets,
                       int64_t begin, int64_t end, float* to, int64_t count) {
  int64_t first = 0;
  for (; count - first > 4 * kLanes; first += 8 * kLanes)
    AddPart<8>(values, from + first, offsets, begin, end, to + first);
  if (count - first > 2 * kLanes) AddPart<4>(values, from + first, offsets, begin, end, to + first);
  else if (count - first > kLanes) AddPart<2>(values, from + first, offsets, begin, end, to + first);
  else if (count > first) AddPart<1>(values, from + first, offsets, begin, end, to + first);
}

}  // namespace
