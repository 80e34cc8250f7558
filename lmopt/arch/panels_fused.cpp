// Products of a few rows with a matrix, as decoding makes them: each weight comes from memory once, in order, and what
// stands around the product is done to the rows on the way: a norm before it, an activation or a sum behind it. Many
// rows are multiplied with the same panels by oneDNN.
//
// Letters: N rows, D inputs, F outputs; D and F are multiples of 16. The matrix is laid out in panels of 64 outputs,
// the last one filled up with zeros: [panel][D / numbers of a word][64] words of two bfloat16 numbers or four bytes.
// What a gate makes of F outputs has F of its own, in panels behind those of the gate. A panel is one thread's, and a
// row's sums go in the order of inputs: the bits depend neither on the number of threads nor on the other rows.

#include <omp.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "products.h"

using namespace lmopt;

namespace {

constexpr int64_t kPanel = 64, kRegisters = kPanel / kLanes;
constexpr int kTogether = 6;        // rows that are multiplied by a weight while it is in a register, at most
constexpr int64_t kPiece = 64;      // words of an output that all rows are multiplied by at a time: 16 KiB of a panel
constexpr int64_t kFetched = 4096;  // words between those that are multiplied and those that are fetched
constexpr float kByte = 127;        // the largest whole number of a byte
constexpr float kTwoBytes = 256 * 127;  // and of two: 256 x the first, and the second

enum Behind { kNothing, kGated, kSquared };  // what is done to the outputs, as Python numbers it

// --- rows as the products take them --------------------------------------------------------------

// Where a row's numbers are in bfloat16.
struct HalfRows {
  static constexpr int64_t operands = 1, numbers = 2;  // rows of words of a row, numbers of a word
  using Sum = Vec;

  static void prepare(int64_t D, const half* x, word* to, float*) { std::copy_n(x, D, reinterpret_cast<half*>(to)); }
  static Sum add(Sum sum, word x, __m512i weights) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(x)), (__m512bh)weights);
  }
};

// The largest magnitude of a row; no number if one of them is none.
inline float largest(int64_t D, const half* x) {
  Vec most(0);
  for (int64_t d = 0; d < D; d += kLanes) most = at::vec::maximum(most, load(x + d).abs());
  alignas(64) float found[kLanes];
  store(found, most);
  float largest = 0;
  for (const float each : found) largest = std::isnan(each) || std::isnan(largest) ? NAN : std::max(largest, each);
  return largest;
}

// Four whole numbers of 0 to 255 a word, from 16 of 32 bits.
inline void store_bytes(word* to, __m512i numbers) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(numbers));
}

// Whole numbers of one byte: x = scale (byte - 128).
struct ByteRows {
  static constexpr int64_t operands = 1, numbers = 4;
  using Sum = __m512i;

  static void prepare(int64_t D, const half* x, word* to, float* scale) {
    const float most = largest(D, x);
    *scale = most == 0 ? 1 : most / kByte;
    for (int64_t d = 0; d < D; d += kLanes)
      store_bytes(to + d / 4, _mm512_add_epi32(_mm512_cvtps_epi32(load(x + d) / Vec(*scale)), _mm512_set1_epi32(128)));
  }
  static Sum add(Sum sum, word x, __m512i weights) {
    return _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(static_cast<int>(x)), weights);
  }
};

// Of two, in two rows of words: x = scale (256 (first byte - 128) + second byte).
struct TwoByteRows : ByteRows {
  static constexpr int64_t operands = 2;

  static void prepare(int64_t D, const half* x, word* to, float* scale) {
    const float most = largest(D, x);
    *scale = most == 0 ? 1 : most / kTwoBytes;
    for (int64_t d = 0; d < D; d += kLanes) {
      const __m512i whole = _mm512_cvtps_epi32(load(x + d) / Vec(*scale));
      store_bytes(to + d / 4, _mm512_add_epi32(_mm512_srai_epi32(whole, 8), _mm512_set1_epi32(128)));
      store_bytes(to + D / 4 + d / 4, _mm512_and_si512(whole, _mm512_set1_epi32(255)));
    }
  }
};

// --- a panel -------------------------------------------------------------------------------------

// sums[r][i] += row r x the 16 outputs i, over `count` words of the panel; from 0 on where they are its first.
template <typename Rows, int rows>
void add_words(int64_t first, int64_t count, int64_t words, const word* x, const word* panel,
               typename Rows::Sum (*sums)[kRegisters]) {
  typename Rows::Sum sum[rows][kRegisters];
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int64_t i = 0; i < kRegisters; i++) sum[r][i] = first == 0 ? typename Rows::Sum{} : sums[r][i];
  for (int64_t w = first; w < first + count; w++) {
    const word* weights = panel + w * kPanel;
#pragma GCC unroll 4
    for (int64_t i = 0; i < kRegisters; i++) {
      _mm_prefetch(reinterpret_cast<const char*>(weights + kFetched + i * kLanes), _MM_HINT_T0);
      const __m512i sixteen = _mm512_loadu_si512(weights + i * kLanes);
#pragma GCC unroll 6
      for (int r = 0; r < rows; r++) sum[r][i] = Rows::add(sum[r][i], x[r * words + w], sixteen);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int64_t i = 0; i < kRegisters; i++) sums[r][i] = sum[r][i];
}

template <typename Rows, int rows = 1, typename... Given>
void add_words_of(int64_t given_rows, const Given&... given) {
  if (given_rows == rows)
    add_words<Rows, rows>(given...);
  else if constexpr (rows < kTogether)
    add_words_of<Rows, rows + 1>(given_rows, given...);
}

// N rows of words x a panel, a few rows at a time, while as many words as a core's first cache holds are in it.
template <typename Rows>
void add_panel(int64_t N, int64_t words, const word* x, const word* panel, typename Rows::Sum (*sums)[kRegisters]) {
  const int64_t groups = blocks(N, kTogether), at_once = blocks(N, groups);
  const int64_t piece = groups == 1 ? words : kPiece;
  for (int64_t first = 0; first < words; first += piece)
    for (int64_t n = 0; n < N; n += at_once)
      add_words_of<Rows>(std::min(at_once, N - n), first, std::min(piece, words - first), words, x + n * words, panel,
                         sums + n);
}

// Of 8-bit weights: the scale of each output, and 128 x the sum of its weights.
struct Scales {
  const float* of;
  const int32_t* shift;
};

// Outputs of a row from what its words added up to; `at` is the first of the 16.
inline Vec outputs(HalfRows, const Vec (*sum)[kRegisters], int64_t i, float, const Scales&, int64_t) {
  return sum[0][i];
}
inline Vec whole(const __m512i (*sum)[kRegisters], int64_t i, const Scales& scales, int64_t at) {
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[0][i], _mm512_loadu_si512(scales.shift + at)));
}
inline Vec outputs(ByteRows, const __m512i (*sum)[kRegisters], int64_t i, float scale, const Scales& scales,
                   int64_t at) {
  return whole(sum, i, scales, at) * Vec(scale) * load(scales.of + at);
}
inline Vec outputs(TwoByteRows, const __m512i (*sum)[kRegisters], int64_t i, float scale, const Scales& scales,
                   int64_t at) {
  const Vec both = at::vec::fmadd(whole(sum, i, scales, at), Vec(256), Vec(_mm512_cvtepi32_ps(sum[1][i])));
  return both * Vec(scale) * load(scales.of + at);
}

// --- the whole -----------------------------------------------------------------------------------

// What is done around a product: RMSNorm with `gains` before it, where there are some; `behind` it an activation; and
// the sum with `others` (N x F), where there are some.
struct Around {
  const float* gains = nullptr;
  float eps = 0;
  Behind behind = kNothing;
  const half* others = nullptr;
};

template <typename Rows, typename Number>
void multiply(int64_t N, int64_t D, int64_t F, int threads, const half* x, const word* panels, const Scales& scales,
              const Around& around, Number* y) {
  const int64_t words = D / Rows::numbers, panel = words * kPanel, count = blocks(F, kPanel);
  const int64_t row_bytes = 4 * N * Rows::operands * words + 4 * N + 2 * D + 3 * 64;
  using Sum = typename Rows::Sum;
  const int64_t own_bytes = 2 * N * Rows::operands * kRegisters * static_cast<int64_t>(sizeof(Sum));
  Scratch scratch(row_bytes + threads * own_bytes + 2 * 64);
  auto* operands = scratch.take<word>(N * Rows::operands * words);
  auto* row_scale = scratch.take<float>(N);
  auto* normed = scratch.take<half>(D);
  auto* all = scratch.take<char>(threads * own_bytes);
  for (int64_t n = 0; n < N; n++) {
    const half* row = x + n * D;
    if (around.gains != nullptr) norm_row(D, around.eps, row, around.gains, normed), row = normed;
    Rows::prepare(D, row, operands + n * Rows::operands * words, row_scale + n);
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t p = 0; p < count; p++) {
    auto* sums = reinterpret_cast<Sum(*)[kRegisters]>(all + omp_get_thread_num() * own_bytes);
    auto* up = sums + N * Rows::operands;
    const int64_t behind = count + p;  // the panel beside the gate's
    add_panel<Rows>(N * Rows::operands, words, operands, panels + p * panel, sums);
    if (around.behind == kGated) add_panel<Rows>(N * Rows::operands, words, operands, panels + behind * panel, up);
    for (int64_t n = 0; n < N; n++)
      for (int64_t i = 0; i < std::min(kRegisters, (F - p * kPanel) / kLanes); i++) {
        const int64_t at = n * F + p * kPanel + i * kLanes, row = n * Rows::operands;
        const auto result_of = [&](const auto* found, int64_t from) {
          return outputs(Rows(), found + row, i, row_scale[n], scales, from * kPanel + i * kLanes);
        };
        Vec result = result_of(sums, p);
        if (around.behind == kGated) result = activated<true>(result, result_of(up, behind));
        if (around.behind == kSquared) result = activated<false>(result, Vec(0));
        if (around.others != nullptr) result = result + load(around.others + at);
        store(y + at, result);
      }
  }
}

// --- many rows -----------------------------------------------------------------------------------

constexpr int64_t kBlock = 64;                  // rows of one of oneDNN's products
constexpr size_t kCodeBytes = size_t(8) << 20;  // of address space that one thread's products take, at most

// A panel in words of bfloat16.
inline const word* in_halves(int64_t, const word* panel, word*, HalfRows) { return panel; }
inline const word* in_halves(int64_t D, const word* panel, word* room, TwoByteRows) {
  const auto number = [](__m512i bytes, int place) {  // whole numbers that fit in a byte are exact
    const __m512i alone = _mm512_srai_epi32(_mm512_slli_epi32(bytes, 24 - 8 * place), 24);
    return _mm512_castps_si512(_mm512_cvtepi32_ps(alone));
  };
  const auto pair = [&](__m512i bytes, int place) {
    return _mm512_or_si512(_mm512_srli_epi32(number(bytes, place), 16), number(bytes, place + 1));
  };
  for (int64_t w = 0; w < D / 4; w++)
    for (int64_t j = 0; j < kPanel; j += kLanes) {
      const __m512i bytes = _mm512_loadu_si512(panel + w * kPanel + j);
      _mm512_storeu_si512(room + 2 * w * kPanel + j, pair(bytes, 0));
      _mm512_storeu_si512(room + (2 * w + 1) * kPanel + j, pair(bytes, 2));
    }
  return room;
}

// The same as `multiply`, of N rows that are a multiple of 16, bfloat16 as they are, and normalised before.
template <typename Rows, typename Number>
void multiply_many(int64_t N, int64_t D, int64_t F, int threads, const half* x, const word* panels, const float* scale,
                   Behind behind, const half* others, Number* y) {
  const int64_t panel = D / Rows::numbers * kPanel, count = blocks(F, kPanel), parts = behind == kGated ? 2 : 1;
  const int64_t own_bytes = filled_up(4 * parts * (kBlock * kPanel + D / 2 * kPanel), 64);
  thread_local std::set<std::tuple<int64_t, int64_t, int>> met;
  const std::tuple products{D, N % kBlock, threads};
  if (!met.count(products)) refuse_without_room(threads * kCodeBytes);
  met.insert(products);
  Scratch scratch(threads * own_bytes);
  auto* all = scratch.take<char>(threads * own_bytes);
#pragma omp parallel num_threads(threads)
  {
    Room own(all + omp_get_thread_num() * own_bytes);
    auto* found = own.take<float>(parts * kBlock * kPanel);
    auto* room = own.take<word>(parts * D / 2 * kPanel);
#pragma omp for schedule(static)
    for (int64_t p = 0; p < count; p++) {
      const word* weights[2];
      for (int64_t part = 0; part < parts; part++)
        weights[part] = in_halves(D, panels + (part * count + p) * panel, room + part * D / 2 * kPanel, Rows());
      const int64_t first = p * kPanel, wide = std::min(kPanel, F - first);
      for (int64_t n = 0; n < N; n += kBlock) {
        const int64_t rows = std::min(kBlock, N - n);
        for (int64_t part = 0; part < parts; part++)
          product(rows, kPanel, D, x + n * D, D, weights[part], kPanel, found + part * kBlock * kPanel);
        for (int64_t r = 0; r < rows; r++)
          for (int64_t j = 0; j < wide; j += kLanes) {
            const auto result_of = [&](int64_t part) {
              const Vec sum = load(found + (part * kBlock + r) * kPanel + j);
              return scale == nullptr ? sum : sum * load(scale + (part * count + p) * kPanel + j);
            };
            const int64_t at = (n + r) * F + first + j;
            Vec result = result_of(0);
            if (behind == kGated) result = activated<true>(result, result_of(1));
            if (behind == kSquared) result = activated<false>(result, Vec(0));
            if (others != nullptr) result = result + load(others + at);
            store(y + at, result);
          }
      }
    }
    at::native::cpublas::brgemm_release();
  }
}

}  // namespace

extern "C" {

bool lmopt_multiply_panels(int64_t N, int64_t D, int64_t F, int threads, float eps, int behind, const half* x,
                           const word* panels, const float* gains, const half* others, half* y) {
  const Around around{gains, eps, static_cast<Behind>(behind), others};
  return enough_memory([&] { multiply<HalfRows>(N, D, F, threads, x, panels, {}, around, y); });
}

bool lmopt_multiply_panels_to_float(int64_t N, int64_t D, int64_t F, int threads, const half* x, const word* panels,
                                    float* y) {
  return enough_memory([&] { multiply<HalfRows>(N, D, F, threads, x, panels, {}, Around{}, y); });
}

bool lmopt_multiply_byte_panels(bool two_bytes, int64_t N, int64_t D, int64_t F, int threads, float eps, int behind,
                                const half* x, const word* panels, const float* scale, const int32_t* shift,
                                const float* gains, const half* others, half* y) {
  const Around around{gains, eps, static_cast<Behind>(behind), others};
  auto* pass = two_bytes ? multiply<TwoByteRows, half> : multiply<ByteRows, half>;
  return enough_memory([&] { pass(N, D, F, threads, x, panels, {scale, shift}, around, y); });
}

bool lmopt_multiply_many(int64_t N, int64_t D, int64_t F, int threads, int behind, const half* x, const word* panels,
                         const float* scale, const half* others, half* y) {
  auto* pass = scale == nullptr ? multiply_many<HalfRows, half> : multiply_many<TwoByteRows, half>;
  return enough_memory([&] { pass(N, D, F, threads, x, panels, scale, static_cast<Behind>(behind), others, y); });
}

bool lmopt_multiply_many_to_float(int64_t N, int64_t D, int64_t F, int threads, const half* x, const word* panels,
                                  float* y) {
  return enough_memory([&] { multiply_many<HalfRows>(N, D, F, threads, x, panels, nullptr, kNothing, nullptr, y); });
}

}  // extern "C"
