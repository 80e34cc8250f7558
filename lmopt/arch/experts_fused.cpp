// What experts compute on a CPU in bfloat16 going forward (letters: experts.h).

#include <cstring>
#include <set>
#include <utility>

#include "experts.h"

using namespace lmopt;

namespace {

constexpr size_t kCodeBytes = size_t(160) << 20;  // of address space that the products of one shape take, at most

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

}  // extern "C"
