// What experts compute on a CPU in bfloat16, forward and backward: one expert after the other, each in a few passes
// over tiles that stay in the cache. Gathering, casting, packing, activations and gates are done on the way.
//
// Letters: N tokens, S rows (slots in the order of their experts), E experts, D width, F inner width, P parts of the
// inner layer (gate and up, or one), G = P x F. Products are oneDNN's, as torch offers them to its own kernels
// (at::native::cpublas::brgemm): A is row-major, B holds pairs of rows as 32-bit words, [K/2][columns], C is float32.
// Threads share the tiles of one expert; every number is computed by one of them, in an order of its own: the bits do
// not depend on their number. D and F are multiples of 16.

#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <set>
#include <type_traits>
#include <utility>

namespace {

using std::int64_t;
using Vec = at::vec::Vectorized<float>;
using half = uint16_t;  // a bfloat16's bits
using word = uint32_t;  // two of them, the lower one first

constexpr int64_t kLanes = 16;    // float32 numbers of a register
constexpr int64_t kRows = 256;    // of a tile
constexpr int64_t kColumns = 64;  // of a tile
constexpr int64_t kDepth = 256;   // rows that one product sums into a weight's gradient
constexpr int64_t kLead = 288;    // numbers between columns of so many rows: no power of two, which share cache lines
constexpr int64_t kFilled = 8;    // forward, rows are filled up with zeros to a multiple of this,
constexpr int64_t kBlock = 16;    // backward, of this: products are compiled for every shape
constexpr size_t kCodeBytes = size_t(160) << 20;  // of address space that the products of one shape take, at most
static_assert(kDepth == kRows);                   // a tile's columns are one piece
constexpr int64_t kAhead = 64;  // numbers between what is packed of a matrix and what is fetched of it

int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }
int64_t filled_up(int64_t n, int64_t size) { return blocks(n, size) * size; }

// --- numbers -------------------------------------------------------------------------------------

inline __m256i bits(const half* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

inline Vec load(const half* from) {
  __m512 numbers;
  at::vec::cvtbf16_fp32(bits(from), numbers);
  return numbers;
}

inline void store(half* to, Vec numbers) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(numbers));
}

// Past the caches: nothing reads a weight's gradient soon, and lines that are written whole need not be read first.
inline void store_past(float* to, Vec numbers) { _mm512_stream_ps(to, numbers); }
inline void store_past(half* to, Vec numbers) { store(to, numbers); }

// 32 numbers, the first 16 of them from `low`.
inline __m512i both(Vec low, Vec high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
inline __m512i both(const float* low, const float* high) { return both(Vec::loadu(low), Vec::loadu(high)); }
inline __m512i both(const half* low, const half* high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(bits(low)), bits(high), 1);
}

// One word a column from two rows of 16.
inline __m512i paired(__m512i rows) {
  alignas(64) static constexpr half order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), rows);
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

// --- matrices ------------------------------------------------------------------------------------

void product(int64_t m, int64_t n, int64_t k, const half* a, int64_t lda, const word* b, int64_t ldb, float* c,
             bool add = false) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, n, add, reinterpret_cast<const at::BFloat16*>(a),
                              reinterpret_cast<const at::BFloat16*>(b), c);
}

// Words: to[column][row] = from[row][column].
void transpose(const word* from, int64_t ld_from, word* to, int64_t ld_to, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i += kLanes)
    for (int64_t j = 0; j < columns; j += kLanes)
      at::vec::transpose_mxn<float>(
          reinterpret_cast<const float*>(from + i * ld_from + j), ld_from, reinterpret_cast<float*>(to + j * ld_to + i),
          ld_to, static_cast<int>(std::min(kLanes, rows - i)), static_cast<int>(std::min(kLanes, columns - j)));
}

// B of a product with W^T, from `n` rows of W (n x k).
template <typename W>
void pack_transposed(const W* w, int64_t ldw, int64_t n, int64_t k, word* to, int64_t ldo) {
  alignas(64) word words[kLanes * kLanes];
  for (int64_t i = 0; i < n; i += kLanes)
    for (int64_t j = 0; j < k; j += 2 * kLanes) {
      const bool whole = j + 2 * kLanes <= k;
      for (int64_t r = 0; r < kLanes; r++) {
        const W* row = w + (i + r) * ldw + j;
        _mm_prefetch(row + kAhead, _MM_HINT_T0);
        _mm_prefetch(row + kAhead + kLanes, _MM_HINT_T0);
        _mm512_store_si512(words + r * kLanes, both(row, whole ? row + kLanes : row));
      }
      transpose(words, kLanes, to + j / 2 * ldo + i, ldo, kLanes, whole ? kLanes : kLanes / 2);
    }
}

// B of a product with W, from `n` columns of W (k x n).
template <typename W>
void pack(const W* w, int64_t ldw, int64_t n, int64_t k, word* to, int64_t ldo) {
  for (int64_t i = 0; i < k; i += 2)
    for (int64_t j = 0; j < n; j += kLanes) {
      const W *low = w + i * ldw + j, *high = low + ldw;
      _mm_prefetch(low + 8 * ldw, _MM_HINT_T0);
      _mm_prefetch(high + 8 * ldw, _MM_HINT_T0);
      _mm512_storeu_si512(to + i / 2 * ldo + j, paired(both(low, high)));
    }
}

// A tile of a weight's gradient, m x n of `to`: the sum over k rows of a^T b. Of `a` each column lies in one piece, of
// all columns first kDepth rows, `stride` numbers on the next.
template <typename W>
void outer(int64_t m, int64_t n, int64_t k, const half* a, int64_t stride, const word* b, int64_t ldb, W* to,
           int64_t ldo, float* c) {
  for (int64_t at = 0; at < k; at += kDepth)
    product(m, n, std::min(kDepth, k - at), a + at / kDepth * stride, kLead, b + at / 2 * ldb, ldb, c, at > 0);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j += kLanes) store_past(to + i * ldo + j, Vec::loadu(c + i * n + j));
}

// --- one expert's rows ---------------------------------------------------------------------------

// Memory that the next call uses again: experts have other numbers of rows at every step, and blocks of ever other
// sizes would leave holes in the heap. It grows with the largest expert met, by a quarter more than was asked for.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    thread_local struct {
      std::unique_ptr<void, decltype(&std::free)> memory{nullptr, &std::free};
      int64_t bytes = 0;
    } kept;
    if (bytes > kept.bytes) {
      kept.memory.reset();  // first, or both are held
      kept.bytes = 0;
      const int64_t asked = filled_up(bytes + bytes / 4, 64);
      kept.memory.reset(std::aligned_alloc(64, asked));
      if (!kept.memory) throw std::bad_alloc();
      kept.bytes = asked;
    }
    next_ = static_cast<char*>(kept.memory.get());
  }
  template <typename T>
  T* take(int64_t count) {
    auto* taken = reinterpret_cast<T*>(next_);
    next_ += filled_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return taken;
  }

 private:
  char* next_;
};

struct Shape {
  int64_t D, F, E;
  const int64_t* token;  // of each row
  const int32_t* ends;   // of each expert's rows
  int threads;

  int64_t most_rows() const {
    int64_t most = 1, start = 0;
    for (int64_t e = 0; e < E; start = ends[e++]) most = std::max(most, ends[e] - start);
    return filled_up(most, kBlock);
  }
};

struct Tile {
  int64_t column, wide, row, high;
  Tile(int64_t column_block, int64_t row_block, int64_t columns, int64_t rows, int64_t columns_a_block = kColumns)
      : column(column_block * columns_a_block),
        wide(std::min(columns_a_block, columns - column)),
        row(row_block * kRows),
        high(std::min(kRows, rows - row)) {}
};

// A tile of the product of an expert's rows (K numbers each) with a packed matrix: those of its rows that hold a slot.
void rows_product(const Tile& tile, int64_t rows, int64_t K, const half* a, const word* b, half* to, int64_t ldo,
                  float* c) {
  product(tile.high, tile.wide, K, a + tile.row * K, K, b + K / 2 * tile.column, tile.wide, c);
  for (int64_t r = 0; r < std::min(tile.high, rows - tile.row); r++)
    for (int64_t j = 0; j < tile.wide; j += kLanes)
      store(to + (tile.row + r) * ldo + tile.column + j, Vec::loadu(c + r * tile.wide + j));
}

// (D, F) of the layers whose products this thread has compiled.
template <bool gated>
std::set<std::pair<int64_t, int64_t>>& compiled() {
  thread_local std::set<std::pair<int64_t, int64_t>> shapes;
  return shapes;
}

// Compile every product that a layer of this shape can ask for, in each thread that will: oneDNN does so when it meets
// one, and what it then keeps for good would lie between blocks of activations, whose holes nothing fits in any more.
template <bool gated>
void compile(int64_t D, int64_t F) {
  if (!compiled<gated>().emplace(D, F).second) return;
  constexpr int64_t P = gated ? 2 : 1, FB = kColumns / P;
  const int64_t G = P * F;
  const std::unique_ptr<half[]> operand(new (std::nothrow) half[kRows * std::max({D, G, kLead})]());
  const std::unique_ptr<word[]> packed(new (std::nothrow)
                                           word[std::max(D, G) / 2 * kColumns + kDepth / 2 * std::max(D, F)]());
  const std::unique_ptr<float[]> c(new (std::nothrow) float[kRows * kColumns]);
  if (!operand || !packed || !c) return;  // an exception would end the process here
  const auto ask = [&](int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, bool add) {
    if (m > 0 && n > 0) product(m, n, k, operand.get(), lda, packed.get(), ldb, c.get(), add);
  };
  const auto tile = [&](int64_t m, int64_t columns, int64_t most, int64_t parts, int64_t k) {
    for (int64_t n : {std::min(columns, most), columns % most}) ask(m, parts * n, k, k, parts * n, false);
  };
  for (int64_t m = kFilled; m <= kRows; m += kFilled) tile(m, F, FB, P, D), tile(m, D, kColumns, 1, F);
  for (int64_t m = kBlock; m <= kRows; m += kBlock) tile(m, F, FB, 1, D), tile(m, D, kColumns, 1, G);
  for (int64_t k = kBlock; k <= kDepth; k += kBlock)
    for (bool add : {false, true})
      for (auto [rows, columns] : {std::pair(D, F), std::pair(G, D)})
        for (int64_t m : {std::min(rows, kRows), rows % kRows})
          for (int64_t n : {std::min(columns, kColumns), columns % kColumns}) ask(m, n, k, kLead, columns, add);
}

// Out of address space oneDNN does not throw but crash: there must be room for what every thread compiles.
template <bool gated>
void refuse_without_room(const Shape& shape) {
  if (compiled<gated>().count({shape.D, shape.F})) return;
  const size_t bytes = shape.threads * kCodeBytes;
  void* room = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) throw std::bad_alloc();
  munmap(room, bytes);
}

// `y` gets a row's result each. `inner` (S x G) is for the backward pass alone: of each expert block after block of its
// columns, in each row after row, gate before up: it is read in the order in which it was written.
template <bool gated, typename W>
void forward(const Shape& shape, const half* x, const W* up, const W* down, half* y, half* inner) {
  constexpr int64_t P = gated ? 2 : 1, FB = kColumns / P;
  const int64_t D = shape.D, F = shape.F, E = shape.E;
  const int64_t* token = shape.token;
  const int32_t* ends = shape.ends;
  const int64_t G = P * F, most = shape.most_rows(), f_blocks = blocks(F, FB), d_blocks = blocks(D, kColumns);
  Scratch scratch(2 * (most * (D + F) + G * D + F * D) + 4 * 64);
  auto* x_RD = scratch.take<half>(most * D);
  auto* h_RF = scratch.take<half>(most * F);
  auto* up_T = scratch.take<word>(D / 2 * G);
  auto* down_T = scratch.take<word>(F / 2 * D);
  refuse_without_room<gated>(shape);
#pragma omp parallel num_threads(shape.threads)
  {
    compile<gated>(D, F);
    alignas(64) float c[kRows * kColumns];
    for (int64_t e = 0, start = 0; e < E; start = ends[e++]) {
      const int64_t rows = ends[e] - start, padded = filled_up(rows, kFilled), tiles = blocks(padded, kRows);
      if (rows == 0) continue;
#pragma omp for nowait
      for (int64_t r = 0; r < padded; r++)
        if (r < rows)
          std::memcpy(x_RD + r * D, x + token[start + r] * D, sizeof(half) * D);
        else
          std::memset(x_RD + r * D, 0, sizeof(half) * D);
#pragma omp for nowait
      for (int64_t b = 0; b < f_blocks; b++) {
        const Tile tile(b, 0, F, padded, FB);
        for (int64_t p = 0; p < P; p++)
          pack_transposed(up + (e * G + p * F + tile.column) * D, D, tile.wide, D,
                          up_T + D / 2 * P * tile.column + p * tile.wide, P * tile.wide);
      }
#pragma omp for
      for (int64_t b = 0; b < d_blocks; b++) {
        const Tile tile(b, 0, D, padded);
        pack_transposed(down + (e * D + tile.column) * F, F, tile.wide, F, down_T + F / 2 * tile.column, tile.wide);
      }
#pragma omp for collapse(2) schedule(dynamic)
      for (int64_t b = 0; b < f_blocks; b++)
        for (int64_t t = 0; t < tiles; t++) {
          const Tile tile(b, t, F, padded, FB);
          const int64_t ld = P * tile.wide;
          product(tile.high, ld, D, x_RD + tile.row * D, D, up_T + D / 2 * P * tile.column, ld, c);
          for (int64_t r = 0; r < tile.high; r++) {
            const bool own = tile.row + r < rows;
            half* kept = inner + start * G + rows * P * tile.column + (tile.row + r) * ld;
            for (int64_t j = 0; j < tile.wide; j += kLanes) {
              const Vec a = Vec::loadu(c + r * ld + j);
              const Vec u = gated ? Vec::loadu(c + r * ld + tile.wide + j) : Vec(0);
              store(h_RF + (tile.row + r) * F + tile.column + j, activated<gated>(a, u));
              if (!own) continue;
              store(kept + j, a);
              if constexpr (gated) store(kept + tile.wide + j, u);
            }
          }
        }
#pragma omp for collapse(2) schedule(dynamic)
      for (int64_t b = 0; b < d_blocks; b++)
        for (int64_t t = 0; t < tiles; t++) {
          const Tile tile(b, t, D, padded);
          rows_product(tile, rows, F, h_RF, down_T, y + start * D, D, c);
        }
    }
    at::native::cpublas::brgemm_release();
  }
}

// Of each row the gradient of its input and of its gate, of each expert those of its matrices. A row's gate multiplies
// the inner layer and its gradient, so that neither the result nor its weighted gradient is needed: the gate's own
// gradient is the product of the inner layer and its gradient before the gate.
template <bool gated, typename W>
void backward(const Shape& shape, const half* grad, const float* gate, const half* x, const half* inner, const W* up,
              const W* down, half* grad_x, float* grad_gate, W* grad_up, W* grad_down) {
  constexpr int64_t P = gated ? 2 : 1, FB = kColumns / P;
  const int64_t D = shape.D, F = shape.F, E = shape.E;
  const int64_t* token = shape.token;
  const int32_t* ends = shape.ends;
  const int64_t G = P * F, most = shape.most_rows();
  const int64_t f_blocks = blocks(F, FB), d_blocks = blocks(D, kColumns);
  Scratch scratch(2 * (most * (2 * D + F + G) + blocks(most, kDepth) * kLead * (D + G) + G * D + F * D + D) +
                  4 * most * f_blocks + 10 * 64);
  auto* grad_RD = scratch.take<half>(most * D);
  auto* grad_DR = scratch.take<half>(blocks(most, kDepth) * D * kLead);
  auto* x_RD = scratch.take<word>(most / 2 * D);
  auto* h_RF = scratch.take<word>(most / 2 * F);
  auto* inner_RG = scratch.take<half>(most * G);  // gradients of the inner layer
  auto* inner_GR = scratch.take<half>(blocks(most, kDepth) * G * kLead);
  auto* down_T = scratch.take<word>(D / 2 * F);
  auto* up_T = scratch.take<word>(G / 2 * D);
  auto* gate_RB = scratch.take<float>(most * f_blocks);
  auto* nothing = scratch.take<half>(D);
  std::fill_n(nothing, D, half(0));
#pragma omp parallel num_threads(shape.threads)
  {
    alignas(64) float c[kRows * kColumns];
    alignas(64) word words[kRows / 2 * kColumns];
    for (int64_t e = 0, start = 0; e < E; start = ends[e++]) {
      const int64_t rows = ends[e] - start, padded = filled_up(rows, kBlock), tiles = blocks(padded, kRows);
      if (rows == 0) {
#pragma omp single nowait
        std::fill_n(grad_up + e * G * D, G * D, W(0));
#pragma omp single nowait
        std::fill_n(grad_down + e * D * F, D * F, W(0));
        continue;
      }
      const auto row = [&](const half* of, int64_t r) { return r < rows ? of + token[start + r] * D : nothing; };
#pragma omp for nowait
      for (int64_t block = 0; block < padded; block += kBlock) {
        for (int64_t r = block; r < block + kBlock; r += 2) {
          const half *low = row(x, r), *high = row(x, r + 1);
          for (int64_t d = 0; d < D; d += kLanes)
            _mm512_storeu_si512(x_RD + r / 2 * D + d, paired(both(low + d, high + d)));
          for (int64_t i = r; i < r + 2; i++) std::memcpy(grad_RD + i * D, row(grad, i), sizeof(half) * D);
        }
        for (int64_t d = 0; d < D; d += kLanes) {
          pack(grad_RD + block * D + d, D, kLanes, kBlock, words, kLanes);
          half* columns = grad_DR + block / kDepth * D * kLead + d * kLead + block % kDepth;
          transpose(words, kLanes, reinterpret_cast<word*>(columns), kLead / 2, kBlock / 2, kLanes);
        }
      }
#pragma omp for nowait
      for (int64_t b = 0; b < f_blocks; b++) {
        const Tile tile(b, 0, F, padded, FB);
        pack(down + e * D * F + tile.column, F, tile.wide, D, down_T + D / 2 * tile.column, tile.wide);
      }
#pragma omp for
      for (int64_t b = 0; b < d_blocks; b++) {
        const Tile tile(b, 0, D, padded);
        pack(up + e * G * D + tile.column, D, tile.wide, G, up_T + G / 2 * tile.column, tile.wide);
      }
#pragma omp for collapse(2) schedule(dynamic)
      for (int64_t b = 0; b < f_blocks; b++)
        for (int64_t t = 0; t < tiles; t++) {
          const Tile tile(b, t, F, padded, FB);
          product(tile.high, tile.wide, D, grad_RD + tile.row * D, D, down_T + D / 2 * tile.column, tile.wide, c);
          for (int64_t r = 0; r < tile.high; r += 2) {
            Vec sum[2] = {Vec(0), Vec(0)};
            for (int64_t j = 0; j < tile.wide; j += kLanes) {
              Vec h[2] = {Vec(0), Vec(0)}, by_a[2] = {Vec(0), Vec(0)}, by_u[2] = {Vec(0), Vec(0)};
              for (int64_t i = 0; i < 2 && tile.row + r + i < rows; i++) {
                const int64_t own = tile.row + r + i;
                const half* kept = inner + start * G + rows * P * tile.column + own * P * tile.wide + j;
                const Vec g = Vec::loadu(c + (r + i) * tile.wide + j), weight(gate[start + own]), weighted = g * weight;
                const auto found = derived<gated>(load(kept), gated ? load(kept + tile.wide) : Vec(0));
                sum[i] = sum[i] + g * found.value;
                h[i] = found.value * weight, by_a[i] = weighted * found.by_a, by_u[i] = weighted * found.by_u;
              }
              const auto keep = [&](const Vec* part, int64_t p) {
                const __m512i numbers = both(part[0], part[1]);
                half* to = inner_RG + (tile.row + r) * G + p * F + tile.column + j;
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(numbers));
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + G), _mm512_extracti64x4_epi64(numbers, 1));
                _mm512_store_si512(words + (p * kRows + r) / 2 * FB + j, paired(numbers));
              };
              keep(by_a, 0);
              if constexpr (gated) keep(by_u, 1);
              _mm512_storeu_si512(h_RF + (tile.row + r) / 2 * F + tile.column + j, paired(both(h[0], h[1])));
            }
            for (int64_t i = 0; i < 2; i++) gate_RB[(tile.row + r + i) * f_blocks + b] = _mm512_reduce_add_ps(sum[i]);
          }
          for (int64_t p = 0; p < P; p++) {
            half* columns = inner_GR + t * G * kLead + (p * F + tile.column) * kLead;
            transpose(words + p * kRows / 2 * FB, FB, reinterpret_cast<word*>(columns), kLead / 2, tile.high / 2,
                      tile.wide);
          }
        }
#pragma omp for nowait
      for (int64_t r = 0; r < rows; r++) {
        float sum = 0;
        for (int64_t b = 0; b < f_blocks; b++) sum += gate_RB[r * f_blocks + b];
        grad_gate[start + r] = sum;
      }
#pragma omp for collapse(2) schedule(dynamic) nowait
      for (int64_t b = 0; b < d_blocks; b++)
        for (int64_t t = 0; t < tiles; t++) {
          const Tile tile(b, t, D, padded);
          rows_product(tile, rows, G, inner_RG, up_T, grad_x + start * D, D, c);
        }
#pragma omp for collapse(2) schedule(dynamic) nowait
      for (int64_t b = 0; b < blocks(F, kColumns); b++)
        for (int64_t t = 0; t < blocks(D, kRows); t++) {
          const Tile tile(b, t, F, D);
          outer(tile.high, tile.wide, padded, grad_DR + tile.row * kLead, D * kLead, h_RF + tile.column, F,
                grad_down + (e * D + tile.row) * F + tile.column, F, c);
        }
#pragma omp for collapse(2) schedule(dynamic)
      for (int64_t b = 0; b < d_blocks; b++)
        for (int64_t t = 0; t < blocks(G, kRows); t++) {
          const Tile tile(b, t, D, G);
          outer(tile.high, tile.wide, padded, inner_GR + tile.row * kLead, G * kLead, x_RD + tile.column, D,
                grad_up + (e * G + tile.row) * D + tile.column, D, c);
        }
    }
    _mm_sfence();
    at::native::cpublas::brgemm_release();
  }
}

// Calls a pass with weights of their type; no exception may reach the caller, which is not C++.
template <typename Pass>
bool enough_memory(bool full, const void* weights, const Pass& pass) {
  try {
    full ? pass(static_cast<const float*>(weights)) : pass(static_cast<const half*>(weights));
  } catch (const std::bad_alloc&) {
    return false;
  }
  return true;
}

}  // namespace

// Whether oneDNN multiplies bfloat16 here: told to do without, it throws, and inside a parallel region that is the end.
extern "C" bool lmopt_experts_work() {
  try {
    const half a[kLanes * kLanes] = {};
    const word b[kLanes * kLanes / 2] = {};
    float c[kLanes * kLanes];
    product(kLanes, kLanes, kLanes, a, kLanes, b, kLanes, c);
    at::native::cpublas::brgemm_release();
  } catch (...) {
    return false;
  }
  return true;
}

// False where memory does not suffice. Weights, and so their gradients, are float32 if `full`, bfloat16 otherwise;
// everything else is bfloat16, but gates.
extern "C" {

bool lmopt_experts_forward(bool gated, bool full, int64_t D, int64_t F, int64_t E, int threads, const int64_t* token,
                           const int32_t* ends, const half* x, const void* up, const void* down, half* y, half* inner) {
  const Shape shape{D, F, E, token, ends, threads};
  return enough_memory(full, up, [&]<typename W>(const W* matrices) {
    auto* made = gated ? &forward<true, W> : &forward<false, W>;
    made(shape, x, matrices, static_cast<const W*>(down), y, inner);
  });
}

bool lmopt_experts_backward(bool gated, bool full, int64_t D, int64_t F, int64_t E, int threads, const int64_t* token,
                            const int32_t* ends, const half* grad, const float* gate, const half* x, const half* inner,
                            const void* up, const void* down, half* grad_x, float* grad_gate, void* grad_up,
                            void* grad_down) {
  const Shape shape{D, F, E, token, ends, threads};
  return enough_memory(full, up, [&]<typename W>(const W* matrices) {
    auto* made = gated ? &backward<true, W> : &backward<false, W>;
    made(shape, grad, gate, x, inner, matrices, static_cast<const W*>(down), grad_x, grad_gate,
         static_cast<W*>(grad_up), static_cast<W*>(grad_down));
  });
}

}  // extern "C"
