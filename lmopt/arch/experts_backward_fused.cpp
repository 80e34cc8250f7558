// The gradients of what experts_fused.cpp computes (letters: experts.h).

#include <cstring>

#include "experts.h"

using namespace lmopt;

namespace {

constexpr int64_t kWide = 256;  // of a few rows at a time

// Past the caches: nothing reads a weight's gradient soon, and lines that are written whole need not be read first.
inline void store_past(float* to, Vec numbers) { _mm512_stream_ps(to, numbers); }
inline void store_past(half* to, Vec numbers) { store(to, numbers); }

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

extern "C" {

// As forward: false where memory does not suffice.
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
