// What both passes of the experts' kernels share: one expert after the other, each in a few passes over tiles that stay
// in the cache. Gathering, casting, packing, activations and gates are done on the way.
//
// Letters: N tokens, K of E experts each, S rows (slots in the order of their experts), D width, F inner width, P parts
// of the inner layer (gate and up, or one), G = P x F.
// Threads share the tiles of one expert or have experts of their own (Turns); every number is computed by one of them,
// in an order of its own: the bits do not depend on their number. D and F are multiples of 16.

#pragma once

#include <omp.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "products.h"

namespace lmopt {

constexpr int64_t kRows = 256;    // of a tile
constexpr int64_t kColumns = 64;  // of a tile
constexpr int64_t kDepth = 256;   // rows that one product sums into a weight's gradient
constexpr int64_t kLead = 288;    // numbers between columns of so many rows: no power of two, which share cache lines
constexpr int64_t kFilled = 8;    // forward, rows are filled up with zeros to a multiple of this,
constexpr int64_t kBlock = 16;    // backward, of this: products are compiled for every shape
constexpr double kUneven = 1.1;   // rows of the busiest thread, over the mean
static_assert(kDepth == kRows);   // a tile's columns are one piece

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
inline void combine(const Shape& shape, bool weighted, const half* rows, half* to) {
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
inline void rows_product(const Tile& tile, int64_t rows, int64_t K, const half* a, const word* b, half* to, int64_t ldo,
                         float* c) {
  product(tile.high, tile.wide, K, a + tile.row * K, K, b + K / 2 * tile.column, tile.wide, c);
  for (int64_t r = 0; r < std::min(tile.high, rows - tile.row); r++)
    for (int64_t j = 0; j < tile.wide; j += kLanes)
      store(to + (tile.row + r) * ldo + tile.column + j, Vec::loadu(c + r * tile.wide + j));
}

}  // namespace lmopt
