// Convolutions by the kept weights alone and 2x2 max-pooling. The gathers share a device's cores, the
// others run on one. Arrays of images have the
// axes [batch, height, width, channels] with the batch as the fastest one in memory, so that each
// kept weight is one multiply-add over contiguous floats.
//
// Gather:   written[y, x, o] = sum over o's kept weights of value * read[pixel + displacement, c]
// Dot:      products[kept]   = sum over pixels of written's gradient * read, image by image
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "lanes.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Integers = ffi::Buffer<ffi::S32>;
using ResultFloats = ffi::ResultBuffer<ffi::F32>;

namespace {

// The first `count` lanes of images whose number is no multiple of kLanes.
Lanes LoadSome(const float* from, int64_t count) {
  Lanes lanes = {};
  std::memcpy(&lanes, from, count * sizeof(float));
  return lanes;
}
void StoreSome(float* to, Lanes lanes, int64_t count) { std::memcpy(to, &lanes, count * sizeof(float)); }

// Images, in the order of memory: height, width, channels, batch.
struct Shape {
  int64_t height, width, channels;
  int64_t Pixel(int64_t y, int64_t x) const { return (y * width + x) * channels; }
  bool Has(int64_t y, int64_t x) const { return y >= 0 && y < height && x >= 0 && x < width; }
};

// Kept weights: displacement of the pixel that they read, down and right, and its channel.
struct Place {
  int32_t down, right, channel;
};

struct Problem {
  Shape read, written;
  int64_t batch;
  const float *images, *values;
  const Place* places;
  const int32_t* starts;          // [phases * channels + 1]: each list of weights
  std::vector<int64_t> offsets;   // of each weight's source, from the anchor's pixel
  int64_t stride_y, stride_x, up_y, up_x, top, left;
  int64_t lowest[2], highest[2];  // displacements
  float* out;
};

constexpr int64_t kWork = 1 << 18;  // multiply-adds that are worth another thread

// Calls visit(begin, end) for ranges that cover [0, count), in several threads if there is work for
// them. A thread that the pool starts too late finds nothing left, and nobody waits for it: the
// caller may be one of the pool's threads itself.
template <typename Visit>
void InParts(ffi::ThreadPool pool, int64_t devices, int64_t work, int64_t count, Visit visit) {
  const int64_t threads = std::min<int64_t>(pool.num_threads() / devices, work / kWork);
  const int64_t parts = std::min(4 * threads, count);
  if (threads <= 1 || parts <= 1) return visit(0, count);
  struct Progress {
    std::atomic<int64_t> begun{0}, done{0};
  };
  const auto progress = std::make_shared<Progress>();
  const auto run = [=] {
    for (int64_t part; (part = progress->begun++) < parts; ++progress->done)
      visit(part * count / parts, (part + 1) * count / parts);
  };
  for (int64_t thread = 1; thread < threads; ++thread) pool.Schedule(std::function<void()>(run));
  run();
  while (progress->done < parts) std::this_thread::yield();
}

int64_t FloorDivide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

template <int Parts, bool Checked, bool Whole>
void Sum(const Problem& p, const float* anchor, int64_t y, int64_t x, int64_t list, float* target,
         int64_t count) {
  Sums<Parts> sums;
  for (int64_t k = p.starts[list]; k < p.starts[list + 1]; ++k) {
    if (Checked && !p.read.Has(y + p.places[k].down, x + p.places[k].right)) continue;
    const float* source = anchor + p.offsets[k];
    if (Whole) sums.Add(p.values[k], source);
    else sums.first += p.values[k] * LoadSome(source, count);
  }
  if (Whole) sums.Put(target);
  else StoreSome(target, sums.first, count);
}

// Rows of Parts * kLanes images from `first` on, or of fewer than kLanes if not Whole.
template <int Parts, bool Whole = true>
void GatherImages(const Problem& p, int64_t first, int64_t begin_row, int64_t end_row) {
  const int64_t count = p.batch - first;
  for (int64_t row = begin_row; row < end_row; ++row) {
    const int64_t moved_y = row * p.stride_y + p.top, y = FloorDivide(moved_y, p.up_y);
    const bool inside_y = y + p.lowest[0] >= 0 && y + p.highest[0] < p.read.height;
    for (int64_t column = 0; column < p.written.width; ++column) {
      const int64_t moved_x = column * p.stride_x + p.left, x = FloorDivide(moved_x, p.up_x);
      const bool inside =
          inside_y && x + p.lowest[1] >= 0 && x + p.highest[1] < p.read.width;
      const int64_t phase = (moved_y - y * p.up_y) * p.up_x + moved_x - x * p.up_x;
      const float* anchor = p.images + p.read.Pixel(y, x) * p.batch + first;
      float* target = p.out + p.written.Pixel(row, column) * p.batch + first;
      int64_t list = phase * p.written.channels;
      for (int64_t end = list + p.written.channels; list < end; ++list, target += p.batch) {
        if (inside) Sum<Parts, false, Whole>(p, anchor, y, x, list, target, count);
        else Sum<Parts, true, Whole>(p, anchor, y, x, list, target, count);
      }
    }
  }
}

ffi::Error Gather(ffi::ThreadPool pool, Floats images, Floats values, Integers places,
                  Integers starts, int64_t devices, int64_t stride_y, int64_t stride_x,
                  int64_t up_y, int64_t up_x, int64_t top, int64_t left, ResultFloats out) {
  const auto read = images.dimensions(), written = out->dimensions();
  Problem p{{read[1], read[2], read[3]},
            {written[1], written[2], written[3]},
            read[0],
            images.typed_data(),
            values.typed_data(),
            reinterpret_cast<const Place*>(places.typed_data()),
            starts.typed_data(),
            {},
            stride_y, stride_x, up_y, up_x, top, left,
            {0, 0},
            {0, 0},
            out->typed_data()};
  p.offsets.resize(values.element_count());
  for (size_t k = 0; k < p.offsets.size(); ++k) {
    const Place& place = p.places[k];
    p.offsets[k] = (p.read.Pixel(place.down, place.right) + place.channel) * p.batch;
    const int64_t moves[2] = {place.down, place.right};
    for (int axis = 0; axis < 2; ++axis) {
      p.lowest[axis] = k ? std::min(p.lowest[axis], moves[axis]) : moves[axis];
      p.highest[axis] = k ? std::max(p.highest[axis], moves[axis]) : moves[axis];
    }
  }
  const int64_t work = values.element_count() * written[1] * written[2] * p.batch;
  InParts(pool, devices, work, written[1], [&p](int64_t begin, int64_t end) {
    int64_t n = 0;
    for (; n + 4 * kLanes <= p.batch; n += 4 * kLanes) GatherImages<4>(p, n, begin, end);
    for (; n + 2 * kLanes <= p.batch; n += 2 * kLanes) GatherImages<2>(p, n, begin, end);
    for (; n + kLanes <= p.batch; n += kLanes) GatherImages<1>(p, n, begin, end);
    if (n < p.batch) GatherImages<1, false>(p, n, begin, end);
  });
  return ffi::Error::Success();
}

// The same for few images, with the axes [batch, channels, height, width] in memory: the lanes are
// pixels. Each channel is copied with its border of zeros, a plane for each phase of the stride, so
// that a kept weight reads one stretch of its plane for all pixels.
ffi::Error GatherPlanes(ffi::ThreadPool pool, Floats images, Floats values, Integers places,
                        Integers starts, int64_t devices, int64_t stride_y, int64_t stride_x,
                        int64_t, int64_t, int64_t top, int64_t left, ResultFloats out) {
  const auto read = images.dimensions(), written = out->dimensions();
  const int64_t height = read[1], width = read[2], channels = read[3], outputs = written[3];
  const int64_t kept = values.element_count();
  const auto* place = reinterpret_cast<const Place*>(places.typed_data());
  int64_t low_y = 0, low_x = 0, high_y = 0, high_x = 0;
  for (int64_t k = 0; k < kept; ++k) {
    low_y = std::min<int64_t>(low_y, place[k].down), high_y = std::max<int64_t>(high_y, place[k].down);
    low_x = std::min<int64_t>(low_x, place[k].right), high_x = std::max<int64_t>(high_x, place[k].right);
  }
  const int64_t rows = written[1] + (high_y - low_y) / stride_y;
  const int64_t columns = written[2] + (high_x - low_x) / stride_x;
  const int64_t stretch = (written[1] - 1) * columns + written[2], plane = rows * columns;
  // Where each weight reads its first pixel, in planes that stand in the order [phase, channel].
  std::vector<int64_t> offsets(kept);
  std::vector<char> used(stride_y * stride_x * channels, 0);
  for (int64_t k = 0; k < kept; ++k) {
    const int64_t down = place[k].down - low_y, right = place[k].right - low_x;
    const int64_t phase = down % stride_y * stride_x + right % stride_x;
    const int64_t number = phase * channels + place[k].channel;
    used[number] = 1;
    offsets[k] = number * plane + down / stride_y * columns + right / stride_x;
  }
  std::vector<float> planes(used.size() * plane + 4 * kLanes, 0.0f);
  for (int64_t n = 0; n < read[0]; ++n) {
    for (size_t number = 0; number < used.size(); ++number) {
      if (!used[number]) continue;
      const int64_t phase = number / channels, channel = number % channels;
      const float* from = images.typed_data() + (n * channels + channel) * height * width;
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t y = row * stride_y + phase / stride_x + top + low_y;
        if (y < 0 || y >= height) continue;
        float* to = planes.data() + number * plane + row * columns;
        for (int64_t column = 0; column < columns; ++column) {
          const int64_t x = column * stride_x + phase % stride_x + left + low_x;
          if (x >= 0 && x < width) to[column] = from[y * width + x];
        }
      }
    }
    const auto add_all = [&, n](int64_t begin_channel, int64_t end_channel) {
      std::vector<float> sums(stretch + 4 * kLanes);
      for (int64_t channel = begin_channel; channel < end_channel; ++channel) {
        const int64_t begin = starts.typed_data()[channel], end = starts.typed_data()[channel + 1];
        AddStretch(values.typed_data(), planes.data(), offsets.data(), begin, end, sums.data(),
                   stretch);
        float* to = out->typed_data() + (n * outputs + channel) * written[1] * written[2];
        for (int64_t row = 0; row < written[1]; ++row)
          std::copy_n(sums.data() + row * columns, written[2], to + row * written[2]);
      }
    };
    InParts(pool, devices, kept * stretch, outputs, add_all);
  }
  return ffi::Error::Success();
}

// One row of written pixels at a time, so that the rows that it meets stay in the cache.
template <bool Whole>
void DotImages(const Problem& p, const float* gradient, int64_t first) {
  const int64_t count = p.batch - first;
  for (int64_t row = 0; row < p.written.height; ++row)
    for (int64_t channel = 0; channel < p.written.channels; ++channel)
      for (int64_t k = p.starts[channel]; k < p.starts[channel + 1]; ++k) {
        const Place& place = p.places[k];
        const int64_t y = row * p.stride_y + p.top + place.down;
        if (y < 0 || y >= p.read.height) continue;
        Lanes sum = {};
        for (int64_t column = 0; column < p.written.width; ++column) {
          const int64_t x = column * p.stride_x + p.left + place.right;
          if (x < 0 || x >= p.read.width) continue;
          const float* one = p.images + (p.read.Pixel(y, x) + place.channel) * p.batch + first;
          const float* other =
              gradient + (p.written.Pixel(row, column) + channel) * p.batch + first;
          sum += Whole ? Load(one) * Load(other) : LoadSome(one, count) * LoadSome(other, count);
        }
        for (int64_t lane = 0; lane < kLanes; ++lane) p.out[k] += sum[lane];
      }
}

ffi::Error Dot(ffi::ThreadPool, Floats images, Floats gradient, Integers places, Integers starts,
               int64_t, int64_t stride_y, int64_t stride_x, int64_t, int64_t, int64_t top,
               int64_t left, ResultFloats out) {
  const auto read = images.dimensions(), written = gradient.dimensions();
  Problem p{};
  p.read = {read[1], read[2], read[3]};
  p.written = {written[1], written[2], written[3]};
  p.batch = read[0];
  p.images = images.typed_data();
  p.places = reinterpret_cast<const Place*>(places.typed_data());
  p.starts = starts.typed_data();
  p.stride_y = stride_y, p.stride_x = stride_x, p.top = top, p.left = left;
  p.out = out->typed_data();
  std::fill_n(p.out, out->element_count(), 0.0f);
  int64_t n = 0;
  for (; n + kLanes <= p.batch; n += kLanes) DotImages<true>(p, gradient.typed_data(), n);
  if (n < p.batch) DotImages<false>(p, gradient.typed_data(), n);
  return ffi::Error::Success();
}

// Calls a function with kLanes numbers of a window at a time: of its pixels (row by row), which lie
// at `corner` of the images, and of the pooled image.
template <typename Visit>
void VisitWindows(const Shape& images, const Shape& pooled, int64_t batch, Visit visit) {
  const int64_t right = images.channels * batch, below = images.width * right;
  for (int64_t row = 0; row < pooled.height; ++row)
    for (int64_t column = 0; column < pooled.width; ++column) {
      const int64_t corner = images.Pixel(2 * row, 2 * column) * batch;
      const int64_t place = pooled.Pixel(row, column) * batch;
      for (int64_t i = 0; i < right; i += kLanes) {
        const int64_t a = corner + i, count = std::min(kLanes, right - i);
        visit(a, a + right, a + below, a + below + right, place + i, count);
      }
    }
}

Lanes LoadUpTo(const float* from, int64_t count) {
  return count == kLanes ? Load(from) : LoadSome(from, count);
}
void StoreUpTo(float* to, Lanes lanes, int64_t count) {
  if (count == kLanes) Store(to, lanes);
  else StoreSome(to, lanes, count);
}

ffi::Error Pool(Floats images, ResultFloats out) {
  const auto read = images.dimensions(), written = out->dimensions();
  const float* from = images.typed_data();
  float* to = out->typed_data();
  VisitWindows({read[1], read[2], read[3]}, {written[1], written[2], written[3]}, read[0],
               [=](int64_t a, int64_t b, int64_t c, int64_t d, int64_t place, int64_t count) {
                 const auto at = [=](int64_t pixel) { return LoadUpTo(from + pixel, count); };
                 StoreUpTo(to + place, Larger(Larger(at(a), at(b)), Larger(at(c), at(d))), count);
               });
  return ffi::Error::Success();
}

// Of equal pixels the first one, row by row, gets the gradient of its window.
ffi::Error PoolGradient(Floats images, Floats gradient, ResultFloats out) {
  const auto read = images.dimensions(), written = gradient.dimensions();
  const float *from = images.typed_data(), *gradients = gradient.typed_data();
  float* to = out->typed_data();
  if (read[1] % 2 || read[2] % 2) std::fill_n(to, out->element_count(), 0.0f);
  VisitWindows({read[1], read[2], read[3]}, {written[1], written[2], written[3]}, read[0],
               [=](int64_t a, int64_t b, int64_t c, int64_t d, int64_t place, int64_t count) {
                 const auto at = [=](int64_t pixel) { return LoadUpTo(from + pixel, count); };
                 const Lanes first = at(a), second = at(b), third = at(c), fourth = at(d);
                 const Masks lower = Larger(third, fourth) > Larger(first, second);
                 const Masks right[2] = {second > first, fourth > third};
                 const Masks of = (Masks)LoadUpTo(gradients + place, count);
                 StoreUpTo(to + a, (Lanes)(of & ~lower & ~right[0]), count);
                 StoreUpTo(to + b, (Lanes)(of & ~lower & right[0]), count);
                 StoreUpTo(to + c, (Lanes)(of & lower & ~right[1]), count);
                 StoreUpTo(to + d, (Lanes)(of & lower & right[1]), count);
               });
  return ffi::Error::Success();
}

// The array itself, in place. The compiler does not know that.
ffi::Error Same(ffi::AnyBuffer array, ffi::Result<ffi::AnyBuffer> out) {
  if (out->untyped_data() != array.untyped_data())
    std::memcpy(out->untyped_data(), array.untyped_data(), array.size_bytes());
  return ffi::Error::Success();
}

}  // namespace

// The first three kernels take and give arrays of the same types, and the same geometry.
#define HARP_SPARSE_BINDING                                        \
  ffi::Ffi::Bind()                                                 \
      .Ctx<ffi::ThreadPool>()                                      \
      .Arg<Floats>()                                               \
      .Arg<Floats>()                                               \
      .Arg<Integers>()                                             \
      .Arg<Integers>()                                             \
      .Attr<int64_t>("devices")                                    \
      .Attr<int64_t>("stride_y")                                   \
      .Attr<int64_t>("stride_x")                                   \
      .Attr<int64_t>("up_y")                                       \
      .Attr<int64_t>("up_x")                                       \
      .Attr<int64_t>("top")                                        \
      .Attr<int64_t>("left")                                       \
      .Ret<Floats>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(HarpSparseGather, Gather, HARP_SPARSE_BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(HarpSparseGatherPlanes, GatherPlanes, HARP_SPARSE_BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(HarpSparseDot, Dot, HARP_SPARSE_BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(HarpPool, Pool, ffi::Ffi::Bind().Arg<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(HarpPoolGradient, PoolGradient,
                              ffi::Ffi::Bind().Arg<Floats>().Arg<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(HarpSame, Same,
                              ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());
