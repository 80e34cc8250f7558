// What experts compute on a CPU in bfloat16, forward and backward: one expert after the other, each in a few passes
// over tiles that stay in the cache. Gathering, casting, packing, activations and gates are done on the way.
//
// Letters: N tokens, K of E experts each, S rows (slots in the order of their experts), D width, F inner width, P parts
// of the inner layer (gate and up, or one), G = P x F.
// Threads share the tiles of one expert or have experts of their own (Turns); every number is computed by one of them,
// in an order of its own: the bits do not depend on their number. D and F are multiples of 16.

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "products.h"

using namespace lmopt;

namespace {

constexpr int64_t kRows = 256;    // of a tile
constexpr int64_t kColumns = 64;  // of a tile
constexpr int64_t kWide = 256;    // of a few rows at a time
constexpr int64_t kDepth = 256;   // rows that one product sums into a weight's gradient
constexpr int64_t kLead = 288;    // numbers between columns of so many rows: no power of two, which share cache lines
constexpr int64_t kFilled = 8;    // forward, rows are filled up with zeros to a multiple of this,
constexpr int64_t kBlock = 16;    // backward, of this: products are compiled for every shape
constexpr double kUneven = 1.1;   // rows of the busiest thread, over the mean
constexpr size_t kCodeBytes = size_t(160) << 20;  // of address space that the products of one shape take, at most
static_assert(kDepth == kRows);                   // a tile's columns are one piece

// --- numbers -------------------------------------------------------------------------------------

// Past the caches: nothing reads a weight's gradient soon, and lines that are written whole need not be read first.
inline void store_past(float* to, Vec numbers) { _mm512_stream_ps(to, numbers); }
inline void store_past(half* to, Vec numbers) { store(to, numbers); }

// --- matrices ------------------------------------------------------------------------------------

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

struct Shape {
  int64_t N, K, D, F, E, S;
  int threads;
  const int64_t* token;  // of each row
  const int32_t* ends;   // of each expert's rows
  const int64_t* slot;   // N x K: the row
  const bool* kept;      // N x K: whether there is one; null where there always is
  const float* gate;     // N x K

  bool has_row(int64_t i) const { return kept == nullptr || kept[i]; }

  int64_t start(int64_t e) const { return e == 0 ? 0 : ends[e - 1]; }
  int64_t rows(int64_t e) const { return ends[e] - start(e); }

  int64_t most_rows() const {
    int64_t most = 1;
    for (int64_t e = 0; e < E; e++) most = std::max(most, rows(e));
    return filled_up(most, kBlock);
  }
};

// Who computes which expert. Either all threads share the tiles of one after the other, or each thread has experts of
// its own, so that nothing crosses to another core's cache and nobody waits within an expert; only where their rows can
// be dealt out about evenly.
class Turns {
 public:
  explicit Turns(const Shape& shape) : threads_(shape.threads), order_(shape.E) {
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) { return shape.rows(a) > shape.rows(b); });
    std::vector<int64_t> dealt(threads_);
    for (int64_t e : order_) *std::min_element(dealt.begin(), dealt.end()) += shape.rows(e);
    const int64_t longest = *std::max_element(dealt.begin(), dealt.end());
    apart_ = threads_ > 1 && longest * threads_ <= kUneven * shape.S;
  }

  int64_t rooms() const { return apart_ ? threads_ : 1; }

  // In a parallel region: `compute(expert, its room)`.
  template <typename Compute>
  void take(const Room& memory, int64_t bytes, const Compute& compute) const {
    if (!apart_) {
      for (int64_t e = 0; e < static_cast<int64_t>(order_.size()); e++) compute(e, memory);
      return;
    }
    const Room own = memory.part(bytes * omp_get_thread_num());
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < static_cast<int64_t>(order_.size()); i++)
#pragma omp parallel num_threads(1)
      compute(order_[i], own);
  }

 private:
  int threads_;
  bool apart_;
  std::vector<int64_t> order_;
};

struct Tile {
  int64_t column, wide, row, high;
  Tile(int64_t column_block, int64_t row_block, int64_t columns, int64_t rows, int64_t columns_a_block = kColumns)
      : column(column_block * columns_a_block),
        wide(std::min(columns_a_block, columns - column)),
        row(row_block * kRows),
        high(std::min(kRows, rows - row)) {}
};

// To a token's number the sum over its rows, here a thread's part of all tokens: weighted with the gates or not.
void combine(const Shape& shape, bool weighted, const half* rows, half* to) {
#pragma omp for
  for (int64_t n = 0; n < shape.N; n++)
    for (int64_t d = 0; d < shape.D; d += kLanes) {
      Vec sum(0);
      for (int64_t i = n * shape.K; i < (n + 1) * shape.K; i++)
        if (shape.has_row(i))
          sum = at::vec::fmadd(load(rows + shape.slot[i] * shape.D + d), Vec(weighted ? shape.gate[i] : 1.f), sum);
      store(to + n * shape.D + d, sum);
    }
}

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

// `y` gets the tokens' results, `rows_y` (S x D) is room for the rows'. `inner` (S x G) is for the backward pass alone:
// of each expert block after block of its columns, in each row after row, gate before up: it is read in the order in
// which it was written.
template <bool gated, typename W>
void forward(const Shape& shape, const half* x, const W* up, const W* down, half* rows_y, half* inner, half* y) {
  constexpr int64_t P = gated ? 2 : 1, FB = kColumns / P;
  const int64_t D = shape.D, F = shape.F, E = shape.E;
  const int64_t* token = shape.token;
  const int32_t* ends = shape.ends;
  const int64_t G = P * F, most = shape.most_rows(), f_blocks = blocks(F, FB), d_blocks = blocks(D, kColumns);
  const Turns turns(shape);
  const int64_t bytes = 2 * (most * (D + F) + G * D + F * D) + 4 * 64;
  Scratch scratch(turns.rooms() * bytes);
  if (!compiled<gated>().count({D, F})) refuse_without_room(shape.threads * kCodeBytes);
  const auto compute = [&](int64_t e, Room room) {
    auto* x_RD = room.take<half>(most * D);
    auto* h_RF = room.take<half>(most * F);
    auto* up_T = room.take<word>(D / 2 * G);
    auto* down_T = room.take<word>(F / 2 * D);
    alignas(64) float c[kRows * kColumns];
    const int64_t start = shape.start(e), rows = ends[e] - start, padded = filled_up(rows, kFilled),
                  tiles = blocks(padded, kRows);
    if (rows == 0) return;
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
        rows_product(tile, rows, F, h_RF, down_T, rows_y + start * D, D, c);
      }
  };
#pragma omp parallel num_threads(shape.threads)
  {
    compile<gated>(D, F);
    turns.take(scratch, bytes, compute);
    combine(shape, true, rows_y, y);
    at::native::cpublas::brgemm_release();
  }
}

// Of each token the gradient of its input and of its gates, of each expert those of its matrices. A row's gate
// multiplies the inner layer and its gradient, so that neither the result nor its weighted gradient is needed: the
// gate's own gradient is the product of the inner layer and its gradient before the gate. `rows_grad` (S x D) is room.
template <bool gated, typename W>
void backward(const Shape& shape, const half* grad, const half* x, const half* inner, const W* up, const W* down,
              half* rows_grad, half* grad_x, float* grad_gate, W* grad_up, W* grad_down) {
  constexpr int64_t P = gated ? 2 : 1, FB = kColumns / P;
  const int64_t D = shape.D, F = shape.F, E = shape.E;
  const int64_t* token = shape.token;
  const int32_t* ends = shape.ends;
  const int64_t G = P * F, most = shape.most_rows();
  const int64_t f_blocks = blocks(F, FB), d_blocks = blocks(D, kColumns);
  const Turns turns(shape);
  const int64_t bytes = 2 * (most * (2 * D + F + G) + blocks(most, kDepth) * kLead * (D + G) + G * D + F * D) +
                        4 * most * f_blocks + 9 * 64;
  Scratch scratch(2 * D + 4 * 2 * shape.S + 3 * 64 + turns.rooms() * bytes);
  auto* nothing = scratch.take<half>(D);
  auto* gate_S = scratch.take<float>(shape.S);  // 0 of a row that holds no slot
  auto* grad_gate_S = scratch.take<float>(shape.S);
  std::fill_n(nothing, D, half(0));
  std::fill_n(gate_S, shape.S, 0.f);
  for (int64_t i = 0; i < shape.N * shape.K; i++)
    if (shape.has_row(i)) gate_S[shape.slot[i]] = shape.gate[i];
  const auto compute = [&](int64_t e, Room room) {
    auto* grad_RD = room.take<half>(most * D);
    auto* grad_DR = room.take<half>(blocks(most, kDepth) * D * kLead);
    auto* x_RD = room.take<word>(most / 2 * D);
    auto* h_RF = room.take<word>(most / 2 * F);
    auto* inner_RG = room.take<half>(most * G);  // gradients of the inner layer
    auto* inner_GR = room.take<half>(blocks(most, kDepth) * G * kLead);
    auto* down_T = room.take<word>(D / 2 * F);
    auto* up_T = room.take<word>(G / 2 * D);
    auto* gate_RB = room.take<float>(most * f_blocks);
    alignas(64) float c[kRows * kColumns];
    alignas(64) word words[kRows / 2 * kColumns];
    const int64_t start = shape.start(e), rows = ends[e] - start, padded = filled_up(rows, kBlock),
                  tiles = blocks(padded, kRows);
    if (rows == 0) {
#pragma omp single nowait
      std::fill_n(grad_up + e * G * D, G * D, W(0));
#pragma omp single nowait
      std::fill_n(grad_down + e * D * F, D * F, W(0));
      return;
    }
    const auto row = [&](const half* of, int64_t r) { return r < rows ? of + token[start + r] * D : nothing; };
#pragma omp for nowait
    for (int64_t block = 0; block < padded; block += 2 * kBlock) {
      const int64_t end = std::min(block + 2 * kBlock, padded);
      for (int64_t r = block; r < end; r += 2) {
        const half *low = row(x, r), *high = row(x, r + 1);
        for (int64_t d = 0; d < D; d += kLanes)
          _mm512_storeu_si512(x_RD + r / 2 * D + d, paired(both(low + d, high + d)));
        for (int64_t i = r; i < r + 2; i++) std::memcpy(grad_RD + i * D, row(grad, i), sizeof(half) * D);
      }
      half* columns = grad_DR + block / kDepth * D * kLead + block % kDepth;
      for (int64_t d = 0; d < D; d += kWide) {
        const int64_t wide = std::min(kWide, D - d);
        pack(grad_RD + block * D + d, D, wide, end - block, words, kWide);
        transpose(words, kWide, reinterpret_cast<word*>(columns + d * kLead), kLead / 2, (end - block) / 2, wide);
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
              const Vec g = Vec::loadu(c + (r + i) * tile.wide + j), weight(gate_S[start + own]), weighted = g * weight;
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
      grad_gate_S[start + r] = sum;
    }
#pragma omp for collapse(2) schedule(dynamic) nowait
    for (int64_t b = 0; b < d_blocks; b++)
      for (int64_t t = 0; t < tiles; t++) {
        const Tile tile(b, t, D, padded);
        rows_product(tile, rows, G, inner_RG, up_T, rows_grad + start * D, D, c);
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
  };
#pragma omp parallel num_threads(shape.threads)
  {
    turns.take(scratch, bytes, compute);
    combine(shape, false, rows_grad, grad_x);
#pragma omp for
    for (int64_t i = 0; i < shape.N * shape.K; i++) grad_gate[i] = shape.has_row(i) ? grad_gate_S[shape.slot[i]] : 0;
    _mm_sfence();
    at::native::cpublas::brgemm_release();
  }
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

extern "C" {

// The row of each slot and the token of each row: one expert's rows after the other's, each in the order of the tokens.
// With a capacity (none: -1) an expert has so many rows, and what finds none is not kept and names row 0. `next` is
// room for E numbers. False where an expert is none of E.
bool lmopt_place_slots(int64_t N, int64_t K, int64_t E, int64_t capacity, const int64_t* expert, int64_t* token,
                       int64_t* slot, int32_t* ends, bool* kept, int64_t* next) {
  for (int64_t i = 0; i < N * K; i++)
    if (expert[i] < 0 || expert[i] >= E) return false;
  std::fill_n(ends, E, static_cast<int32_t>(std::max(capacity, int64_t(0))));
  if (capacity < 0)
    for (int64_t i = 0; i < N * K; i++) ends[expert[i]]++;
  for (int64_t e = 0; e < E; e++) {
    next[e] = e == 0 ? 0 : ends[e - 1];
    ends[e] += static_cast<int32_t>(next[e]);
  }
  if (capacity >= 0) std::fill_n(token, E * capacity, int64_t(0));
  for (int64_t n = 0; n < N; n++)
    for (int64_t i = n * K; i < (n + 1) * K; i++) {
      const int64_t row = next[expert[i]]++;
      const bool fits = row < ends[expert[i]];
      if (fits) token[row] = n;
      slot[i] = fits ? row : 0;
      if (capacity >= 0) kept[i] = fits;
    }
  return true;
}

// False where memory does not suffice. Weights, and so their gradients, are float32 if `full`, bfloat16 otherwise;
// everything else is bfloat16, but gates.
bool lmopt_experts_forward(bool gated, bool full, int64_t N, int64_t K, int64_t D, int64_t F, int64_t E, int64_t S,
                           int threads, const int64_t* token, const int32_t* ends, const int64_t* slot,
                           const bool* kept, const float* gate, const half* x, const void* up, const void* down,
                           half* rows_y, half* inner, half* y) {
  const Shape shape{N, K, D, F, E, S, threads, token, ends, slot, kept, gate};
  const auto pass = [&]<typename W>(const W* matrices) {
    auto* made = gated ? &forward<true, W> : &forward<false, W>;
    made(shape, x, matrices, static_cast<const W*>(down), rows_y, inner, y);
  };
  return enough_memory([&] { full ? pass(static_cast<const float*>(up)) : pass(static_cast<const half*>(up)); });
}

bool lmopt_experts_backward(bool gated, bool full, int64_t N, int64_t K, int64_t D, int64_t F, int64_t E, int64_t S,
                            int threads, const int64_t* token, const int32_t* ends, const int64_t* slot,
                            const bool* kept, const float* gate, const half* grad, const half* x, const half* inner,
                            const void* up, const void* down, half* rows_grad, half* grad_x, float* grad_gate,
                            void* grad_up, void* grad_down) {
  const Shape shape{N, K, D, F, E, S, threads, token, ends, slot, kept, gate};
  const auto pass = [&]<typename W>(const W* matrices) {
    auto* made = gated ? &backward<true, W> : &backward<false, W>;
    made(shape, grad, x, inner, matrices, static_cast<const W*>(down), rows_grad, grad_x, grad_gate,
         static_cast<W*>(grad_up), static_cast<W*>(grad_down));
  };
  return enough_memory([&] { full ? pass(static_cast<const float*>(up)) : pass(static_cast<const half*>(up)); });
}

}  // extern "C"
