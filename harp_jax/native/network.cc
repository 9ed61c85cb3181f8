// Runs a whole pruned network, one image after the other, on the core that calls. The values of its
// steps are planes [channels, height, width] in one piece of memory, where vectors are pixels. Whole
// vectors run over the ends of rows, which are written in order, and of values, after which kLanes
// floats are free.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "lanes.h"

namespace {

enum Kind : int64_t { kConv, kDense, kAffine, kAdd, kMean, kMaxPool, kAvgPool };

struct Shape {
  int64_t channels, height, width;
  int64_t Plane() const { return height * width; }
};

// Mirrors `Step` in export/native_network.py, which describes the fields.
struct Step {
  int64_t kind, relu;
  int64_t read, other, written;
  Shape from, to;
  int64_t window[2], strides[2], start[2];
  int64_t planes, rows, columns, copies;
  const int64_t *copied, *offsets, *starts;
  const float *values, *bias;
};

struct Network {
  const Step* steps;
  int64_t count, floats, logits;
  Shape images;
};

// NaN stays NaN.
inline Lanes Relu(Lanes x) { return Choose(x < 0.0f, Lanes{}, x); }

// to[i] = give(i) for vectors from i on, and the step's ReLU.
template <typename Give>
void Write(const Step& s, int64_t count, float* to, Give give) {
  for (int64_t i = 0; i < count; i += kLanes) Store(to + i, s.relu ? Relu(give(i)) : give(i));
}

// Copies what kept weights read into planes with a border of zeros, one for each channel and phase
// of the strides, so that each weight reads one stretch of its plane for all pixels.
void CopyPlanes(const Step& s, float* memory) {
  for (int64_t copy = 0; copy < s.copies; ++copy) {
    const int64_t* of = s.copied + 3 * copy;  // channel, first row and column that are read
    const float* from = memory + s.read + of[0] * s.from.Plane();
    float* to = memory + s.planes + copy * s.rows * s.columns;
    const int64_t stride = s.strides[1], shift = of[2];
    const int64_t begin = std::clamp<int64_t>((-shift + stride - 1) / stride, 0, s.columns);
    const int64_t beyond = std::max<int64_t>(s.from.width - shift + stride - 1, 0) / stride;
    const int64_t end = std::clamp(beyond, begin, s.columns);
    for (int64_t row = 0; row < s.rows; ++row, to += s.columns) {
      const int64_t y = of[1] + row * s.strides[0];
      if (y < 0 || y >= s.from.height) {
        std::fill_n(to, s.columns, 0.0f);
        continue;
      }
      const float* line = from + y * s.from.width + shift;
      std::fill(to, to + begin, 0.0f);
      if (stride == 1) std::copy(line + begin, line + end, to + begin);
      else for (int64_t x = begin; x < end; ++x) to[x] = line[x * stride];
      std::fill(to + end, to + s.columns, 0.0f);
    }
  }
}

void Conv(const Step& s, float* memory, float* sums) {
  CopyPlanes(s, memory);
  const float* planes = memory + s.planes;
  const int64_t stretch = (s.to.height - 1) * s.columns + s.to.width;
  float* to = memory + s.written;
  for (int64_t channel = 0; channel < s.to.channels; ++channel) {
    AddStretch(s.values, planes, s.offsets, s.starts[channel], s.starts[channel + 1], sums, stretch);
    const float bias = s.bias[channel];
    for (int64_t row = 0; row < s.to.height; ++row, to += s.to.width) {
      const float* from = sums + row * s.columns;
      Write(s, s.to.width, to, [=](int64_t x) { return Load(from + x) + bias; });
    }
  }
}

void Dense(const Step& s, float* memory) {
  const float* from = memory + s.read;
  for (int64_t unit = 0; unit < s.to.channels; ++unit) {
    float sum = s.bias[unit];
    for (int64_t k = s.starts[unit]; k < s.starts[unit + 1]; ++k)
      sum += s.values[k] * from[s.offsets[k]];
    memory[s.written + unit] = s.relu && sum < 0 ? 0 : sum;
  }
}

void Affine(const Step& s, float* memory) {
  const float* from = memory + s.read;
  float* to = memory + s.written;
  const int64_t pixels = s.to.Plane();
  for (int64_t channel = 0; channel < s.to.channels; ++channel, from += pixels, to += pixels) {
    const float scale = s.values[channel], bias = s.bias[channel];
    Write(s, pixels, to, [=](int64_t i) { return scale * Load(from + i) + bias; });
  }
}

void Add(const Step& s, float* memory) {
  const float *one = memory + s.read, *other = memory + s.other;
  Write(s, s.to.channels * s.to.Plane(), memory + s.written,
        [=](int64_t i) { return Load(one + i) + Load(other + i); });
}

void Mean(const Step& s, float* memory) {
  const float* from = memory + s.read;
  const int64_t pixels = s.from.Plane();
  for (int64_t channel = 0; channel < s.to.channels; ++channel, from += pixels) {
    float sum = 0;
    for (int64_t i = 0; i < pixels; ++i) sum += from[i];
    memory[s.written + channel] = sum / pixels;
  }
}

// Joins the pixels of each window, of those within the image, and starts from `start`.
template <typename Join>
void Windows(const Step& s, float* memory, float start, float scale, Join join) {
  const float* from = memory + s.read;
  float* to = memory + s.written;
  for (int64_t channel = 0; channel < s.to.channels; ++channel, from += s.from.Plane())
    for (int64_t row = 0; row < s.to.height; ++row, to += s.to.width) {
      std::fill_n(to, s.to.width, start);
      for (int64_t dy = 0; dy < s.window[0]; ++dy) {
        const int64_t y = s.start[0] + row * s.strides[0] + dy;
        if (y < 0 || y >= s.from.height) continue;
        for (int64_t dx = 0; dx < s.window[1]; ++dx)
          for (int64_t column = 0; column < s.to.width; ++column) {
            const int64_t x = s.start[1] + column * s.strides[1] + dx;
            if (x >= 0 && x < s.from.width) to[column] = join(to[column], from[y * s.from.width + x]);
          }
      }
      for (int64_t x = 0; x < s.to.width; ++x) to[x] *= scale;
    }
}

// Windows of 2 x 2 without a border, which most networks have: every other of the vectors' maxima.
void MaxPool2(const Step& s, float* memory) {
  const int64_t width = s.from.width;
  float* to = memory + s.written;
  for (int64_t channel = 0; channel < s.to.channels; ++channel)
    for (int64_t row = 0; row < s.to.height; ++row, to += s.to.width) {
      const float* from = memory + s.read + channel * s.from.Plane() + 2 * row * width;
      const float* below = from + width;
      for (int64_t x = 0; x < s.to.width; x += kLanes / 2) {
        const Lanes all = Larger(Larger(Load(from + 2 * x), Load(from + 2 * x + 1)),
                                 Larger(Load(below + 2 * x), Load(below + 2 * x + 1)));
        for (int64_t i = 0; i < kLanes / 2; ++i) to[x + i] = all[2 * i];
      }
    }
}

void Run(const Step& s, float* memory, float* sums) {
  const bool twos = s.window[0] == 2 && s.window[1] == 2 && s.strides[0] == 2 &&
                    s.strides[1] == 2 && s.start[0] == 0 && s.start[1] == 0 &&
                    2 * s.to.height <= s.from.height && 2 * s.to.width <= s.from.width;
  switch (s.kind) {
    case kConv: return Conv(s, memory, sums);
    case kDense: return Dense(s, memory);
    case kAffine: return Affine(s, memory);
    case kAdd: return Add(s, memory);
    case kMean: return Mean(s, memory);
    case kMaxPool:
      if (twos) return MaxPool2(s, memory);
      return Windows(s, memory, -std::numeric_limits<float>::infinity(), 1,
                     [](float a, float b) { return a > b || a != a ? a : b; });
    case kAvgPool:
      return Windows(s, memory, 0, 1.0f / (s.window[0] * s.window[1]),
                     [](float a, float b) { return a + b; });
  }
}

}  // namespace

// Computes the logits [batch, classes] of images [batch, height, width, channels].
extern "C" void HarpRunNetwork(const Network* network, const float* images, int64_t batch,
                               float* logits) {
  thread_local std::vector<float> kept;  // between calls
  int64_t longest = 0;
  for (int64_t i = 0; i < network->count; ++i) {
    const Step& s = network->steps[i];
    if (s.kind == kConv) longest = std::max(longest, s.to.height * s.columns);
  }
  const int64_t slack = 4 * kLanes;
  if (int64_t(kept.size()) < network->floats + longest + 2 * slack)
    kept.resize(network->floats + longest + 2 * slack);
  float *memory = kept.data(), *sums = memory + network->floats + slack;
  const Shape& shape = network->images;
  for (int64_t n = 0; n < batch; ++n) {
    const float* image = images + n * shape.channels * shape.Plane();
    for (int64_t channel = 0; channel < shape.channels; ++channel)
      for (int64_t i = 0; i < shape.Plane(); ++i)
        memory[channel * shape.Plane() + i] = image[i * shape.channels + channel];
    for (int64_t i = 0; i < network->count; ++i) Run(network->steps[i], memory, sums);
    std::copy_n(memory + network->logits, network->steps[network->count - 1].to.channels,
                logits + n * network->steps[network->count - 1].to.channels);
  }
}
