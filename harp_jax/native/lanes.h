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

template <int Parts>
void AddPart(const float* values, const float* from, const int64_t* offsets, int64_t begin,
             int64_t end, float* to) {
  Lanes sums[Parts] = {};
  for (int64_t k = begin; k < end; ++k)
    for (int part = 0; part < Parts; ++part)
      sums[part] += values[k] * Load(from + offsets[k] + part * kLanes);
  for (int part = 0; part < Parts; ++part) Store(to + part * kLanes, sums[part]);
}

// to[i] = sum over weights begin to end of value * from[offset + i], for i < count. Reads and writes
// up to 4 * kLanes - 1 floats beyond that.
inline void AddStretch(const float* values, const float* from, const int64_t* offsets,
                       int64_t begin, int64_t end, float* to, int64_t count) {
  for (int64_t first = 0; first < count; first += 4 * kLanes) {
    const auto add = count - first > 2 * kLanes ? AddPart<4>
                     : count - first > kLanes   ? AddPart<2>
                                                : AddPart<1>;
    add(values, from + first, offsets, begin, end, to + first);
  }
}

}  // namespace
