// What the kernels share: 16 float32 numbers a register, of bfloat16 or float32 in memory, and memory that is kept
// between calls.

#pragma once

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

namespace lmopt {

using std::int64_t;
using Vec = at::vec::Vectorized<float>;
using half = uint16_t;  // a bfloat16's bits
using word = uint32_t;  // two of them, the lower one first

constexpr int64_t kLanes = 16;  // float32 numbers of a register

inline int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }
inline int64_t filled_up(int64_t n, int64_t size) { return blocks(n, size) * size; }

inline __m256i bits(const half* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

inline Vec load(const float* from) { return Vec::loadu(from); }
inline Vec load(const half* from) {
  __m512 numbers;
  at::vec::cvtbf16_fp32(bits(from), numbers);
  return numbers;
}

inline void store(float* to, Vec numbers) { numbers.store(to); }
inline void store(half* to, Vec numbers) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(numbers));
}

// y = x scale gains with scale = 1 / sqrt(mean(x^2) + eps), which is returned.
template <typename Number>
inline float norm_row(int64_t D, float eps, const Number* x, const float* gains, Number* y) {
  Vec squares(0);
  for (int64_t d = 0; d < D; d += kLanes) {
    const Vec numbers = load(x + d);
    squares = at::vec::fmadd(numbers, numbers, squares);
  }
  const float scale = 1 / std::sqrt(_mm512_reduce_add_ps(squares) / static_cast<float>(D) + eps);
  for (int64_t d = 0; d < D; d += kLanes) store(y + d, load(x + d) * Vec(scale) * load(gains + d));
  return scale;
}

inline Vec sigmoid(Vec x) { return Vec(1) / (Vec(1) + x.neg().exp_u20()); }

// silu(a) u, or relu(a)^2 where there is one part.
template <bool gated>
inline Vec activated(Vec a, Vec u) {
  if constexpr (gated) return a * sigmoid(a) * u;
  const Vec rectified = at::vec::maximum(a, Vec(0));
  return rectified * rectified;
}

struct Activated {
  Vec value, by_a, by_u;
};

// The same with its two derivatives.
template <bool gated>
inline Activated derived(Vec a, Vec u) {
  if constexpr (gated) {
    const Vec s = sigmoid(a), silu = a * s;
    return {silu * u, u * (s + silu * (Vec(1) - s)), silu};
  }
  const Vec rectified = at::vec::maximum(a, Vec(0));
  return {rectified * rectified, rectified + rectified, Vec(0)};
}

// One head of one token: its pairs (i, i + C/2) turned by the position's angle, or back; the first half of the sines
// carries their minus sign.
template <typename From, typename To>
inline void turn(int64_t C, const From* from, const From* cosine, const From* sine, bool back, To* to) {
  const int64_t half_C = C / 2;
  const Vec sign(back ? -1.f : 1.f);
  for (int64_t c = 0; c < half_C; c += kLanes) {
    const Vec low = load(from + c), high = load(from + half_C + c);
    store(to + c, at::vec::fmadd(high * sign, load(sine + c), low * load(cosine + c)));
    store(to + half_C + c, at::vec::fmadd(low * sign, load(sine + half_C + c), high * load(cosine + half_C + c)));
  }
}

// What turns exponentials into a softmax. Their sum is at most their number, unless one of them came of no number or of
// infinity, which not every instruction here passes on.
inline float share_of(float sum) { return std::isfinite(sum) ? 1 / sum : std::numeric_limits<float>::quiet_NaN(); }

// Scores become exponentials, of `scale` times their difference to the largest, and 0 from `seen` to the end of the
// last register. Returned is what makes a softmax of them.
inline float exponentials(int64_t seen, float scale, float* scores) {
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  std::fill(scores + seen, scores + filled_up(seen, kLanes), lowest);
  Vec largest(lowest), sum(0);
  for (int64_t j = 0; j < seen; j += kLanes) largest = at::vec::maximum(largest, load(scores + j));
  const Vec most(_mm512_reduce_max_ps(largest));
  for (int64_t j = 0; j < seen; j += kLanes) {
    const Vec power = ((load(scores + j) - most) * Vec(scale)).exp_u20();
    store(scores + j, power);
    sum = sum + power;
  }
  return share_of(_mm512_reduce_add_ps(sum));
}

// 16 x 16 words or float32 numbers. A register begins with a quarter of four rows, four rows apart, so that what is
// left is to transpose 4 x 4 in each quarter: half the shuffles that whole rows take (torch's transpose_mxn).
template <typename T>
inline void transpose_square(const T* from, int64_t ld_from, T* to, int64_t ld_to) {
  const auto quarter = [&](int64_t row, int64_t column) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(from + row * ld_from + column));
  };
  const auto keep = [&](int64_t column, __m512d numbers) {
    _mm512_storeu_pd(reinterpret_cast<double*>(to + column * ld_to), numbers);
  };
  for (int64_t column = 0; column < kLanes; column += 4) {
    const auto rows = [&](int64_t first) {
      __m512 four = _mm512_castps128_ps512(quarter(first, column));
      four = _mm512_insertf32x4(four, quarter(first + 4, column), 1);
      four = _mm512_insertf32x4(four, quarter(first + 8, column), 2);
      return _mm512_insertf32x4(four, quarter(first + 12, column), 3);
    };
    const __m512 a = rows(0), b = rows(1), c = rows(2), d = rows(3);
    const __m512d ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)),
                  ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
    const __m512d cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(c, d)),
                  cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
    keep(column, _mm512_unpacklo_pd(ab_low, cd_low));
    keep(column + 1, _mm512_unpackhi_pd(ab_low, cd_low));
    keep(column + 2, _mm512_unpacklo_pd(ab_high, cd_high));
    keep(column + 3, _mm512_unpackhi_pd(ab_high, cd_high));
  }
}

// Words or float32 numbers: to[column][row] = from[row][column].
template <typename T>
void transpose(const T* from, int64_t ld_from, T* to, int64_t ld_to, int64_t rows, int64_t columns) {
  static_assert(sizeof(T) == sizeof(float));
  for (int64_t i = 0; i < rows; i += kLanes)
    for (int64_t j = 0; j < columns; j += kLanes) {
      const int64_t high = std::min(kLanes, rows - i), wide = std::min(kLanes, columns - j);
      const T* block = from + i * ld_from + j;
      T* turned = to + j * ld_to + i;
      if (high == kLanes && wide == kLanes)
        transpose_square(block, ld_from, turned, ld_to);
      else
        at::vec::transpose_mxn<float>(reinterpret_cast<const float*>(block), ld_from, reinterpret_cast<float*>(turned),
                                      ld_to, static_cast<int>(high), static_cast<int>(wide));
    }
}

// Takes one piece of memory after the other.
class Room {
 public:
  explicit Room(void* memory) : next_(static_cast<char*>(memory)) {}
  template <typename T>
  T* take(int64_t count) {
    auto* taken = reinterpret_cast<T*>(next_);
    next_ += filled_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return taken;
  }
  Room part(int64_t bytes) const { return Room(next_ + bytes); }

 private:
  char* next_;
};

// Memory that this thread's next call uses again: experts have other numbers of rows at every step, and blocks of ever
// other sizes would leave holes in the heap. It grows with the most that was asked for, by a quarter more than that.
class Scratch : public Room {
 public:
  explicit Scratch(int64_t bytes) : Room(kept(bytes)) {}

 private:
  static void* kept(int64_t bytes) {
    thread_local struct {
      std::unique_ptr<void, decltype(&std::free)> memory{nullptr, &std::free};
      int64_t bytes = 0;
    } last;
    if (bytes > last.bytes) {
      last.memory.reset();  // first, or both are held
      last.bytes = 0;
      const int64_t asked = filled_up(bytes + bytes / 4, 64);
      last.memory.reset(std::aligned_alloc(64, asked));
      if (!last.memory) throw std::bad_alloc();
      last.bytes = asked;
    }
    return last.memory.get();
  }
};

// Whether there was memory for it. No exception may reach a caller that is not C++.
template <typename Work>
bool enough_memory(const Work& work) {
  try {
    work();
  } catch (const std::bad_alloc&) {
    return false;
  }
  return true;
}

}  // namespace lmopt
