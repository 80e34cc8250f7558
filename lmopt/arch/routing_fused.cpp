// Which experts tokens go to: scores, softmax, the largest K, gates and the router's losses, forward and backward.
// 16 tokens at a time, one in each lane of a register, so that what is done for a token takes no sums across lanes.
//
// Letters: N tokens, E experts, K of them chosen a token, D width, a multiple of 16. A tile is 16 tokens, and
// of each expert one register. Each number is computed by one thread, and what is summed over tokens is summed in
// chunks of as many and in their order, whoever does it: the bits do not depend on the number of threads.

#include <omp.h>

#include <algorithm>
#include <limits>

#include "kernels.h"

using namespace lmopt;

namespace {

constexpr int64_t kChunk = 8 * kLanes;  // tokens whose sums are one thread's
constexpr int64_t kTogether = 8;        // experts whose sums are in registers at once
constexpr int64_t kDepth = 256;         // tokens that are summed in registers into a weight's gradient

struct Shape {
  int64_t N, D, E, K;
  int threads;
  bool sum_to_one;

  int64_t tokens(int64_t first, int64_t most) const { return std::min(most, N - first); }
};

// --- a tile --------------------------------------------------------------------------------------

// to[d][token]; behind the last token it is repeated.
template <typename X>
void columns(const Shape& shape, const X* x, int64_t first, float* to) {
  alignas(64) float rows[kLanes * kLanes];
  for (int64_t d = 0; d < shape.D; d += kLanes) {
    for (int64_t t = 0; t < kLanes; t++)
      store(rows + t * kLanes, load(x + std::min(first + t, shape.N - 1) * shape.D + d));
    transpose(rows, kLanes, to + d * kLanes, kLanes, kLanes, kLanes);
  }
}

void scores(const Shape& shape, const float* x_D16, const float* w, float* to) {
  for (int64_t e = 0; e < shape.E; e += kTogether) {
    const float* row[kTogether];
    Vec sum[kTogether];
    for (int64_t i = 0; i < kTogether; i++) row[i] = w + std::min(e + i, shape.E - 1) * shape.D, sum[i] = Vec(0);
    for (int64_t d = 0; d < shape.D; d++) {
      const Vec numbers = load(x_D16 + d * kLanes);
      for (int64_t i = 0; i < kTogether; i++) sum[i] = at::vec::fmadd(Vec(row[i][d]), numbers, sum[i]);
    }
    for (int64_t i = 0; i < std::min(kTogether, shape.E - e); i++) store(to + (e + i) * kLanes, sum[i]);
  }
}

Vec log_sum_exp(int64_t E, const float* logits) {
  Vec most(-std::numeric_limits<float>::infinity()), sum(0);
  for (int64_t e = 0; e < E; e++) most = at::vec::maximum(most, load(logits + e * kLanes));
  for (int64_t e = 0; e < E; e++) sum = sum + (load(logits + e * kLanes) - most).exp();
  return most + sum.log();
}

// The K largest of each token, [K][16], the largest first and of equal ones the first, and whose they are. K different
// experts whatever the logits: one that is no number counts as larger than the others.
void choose(const Shape& shape, const float* logits, __mmask16* left, float* largest, int32_t* whose) {
  std::fill_n(left, shape.E, static_cast<__mmask16>(0xffff));
  for (int64_t k = 0; k < shape.K; k++) {
    __m512 best = _mm512_setzero_ps();
    __m512i expert = _mm512_setzero_si512();
    __mmask16 found = 0;
    for (int64_t e = 0; e < shape.E; e++) {
      const __m512 logit = load(logits + e * kLanes);
      const __mmask16 beats = _mm512_cmp_ps_mask(logit, best, _CMP_NLE_UQ) & _mm512_cmp_ps_mask(best, best, _CMP_ORD_Q);
      const __mmask16 takes = left[e] & (beats | static_cast<__mmask16>(~found));
      best = _mm512_mask_mov_ps(best, takes, logit);
      expert = _mm512_mask_mov_epi32(expert, takes, _mm512_set1_epi32(static_cast<int>(e)));
      found |= left[e];
    }
    store(largest + k * kLanes, best);
    _mm512_storeu_si512(whose + k * kLanes, expert);
    for (int64_t e = 0; e < shape.E; e++)
      left[e] &= _mm512_cmpneq_epi32_mask(expert, _mm512_set1_epi32(static_cast<int>(e)));
  }
}

// In place of the largest logits.
void gates(const Shape& shape, float* largest, Vec log_sum) {
  const Vec less = shape.sum_to_one ? load(largest) : log_sum;
  Vec sum(0);
  for (int64_t k = 0; k < shape.K; k++) {
    const Vec gate = (load(largest + k * kLanes) - less).exp();
    store(largest + k * kLanes, gate);
    sum = sum + gate;
  }
  if (shape.sum_to_one)
    for (int64_t k = 0; k < shape.K; k++) store(largest + k * kLanes, load(largest + k * kLanes) / sum);
}

// --- all tokens ----------------------------------------------------------------------------------

// Memory of its own for each thread.
class Pieces {
 public:
  explicit Pieces(int64_t floats) : floats_(filled_up(floats, kLanes)) {}
  int64_t of_all(int threads) const { return floats_ * threads; }
  float* of(float* all, int thread) const { return all + floats_ * thread; }

 private:
  int64_t floats_;
};

// The loss is sum_e pull_e sum_n p_ne + z/N sum_n log_sum_n^2, where pull_e = load_e x balance x E / (N K) / N.
template <typename X>
void forward(const Shape& shape, const X* x, const float* w, float balance, float z, float* logits, float* gate,
             int64_t* expert, float* loss, float* log_sum, float* pull) {
  const int64_t N = shape.N, D = shape.D, E = shape.E, K = shape.K;  // clang shares no structured bindings
  const int64_t chunks = blocks(N, kChunk), summed = 2 * E + 1;      // of a chunk: probabilities, loads, squares
  const Pieces piece((D + 2 * E + 2 * K) * kLanes + E);
  Scratch scratch(4 * (chunks * summed + piece.of_all(shape.threads)) + 2 * 64);
  auto* sums = scratch.take<float>(chunks * summed);
  auto* pieces = scratch.take<float>(piece.of_all(shape.threads));
#pragma omp parallel num_threads(shape.threads)
  {
    float* columns_D16 = piece.of(pieces, omp_get_thread_num());
    float *logit_E16 = columns_D16 + D * kLanes, *p_E16 = logit_E16 + E * kLanes, *largest_K16 = p_E16 + E * kLanes;
    auto* whose_K16 = reinterpret_cast<int32_t*>(largest_K16 + K * kLanes);
    auto* left_E = reinterpret_cast<__mmask16*>(whose_K16 + K * kLanes);
#pragma omp for
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      float *p_E = sums + chunk * summed, *load_E = p_E + E, *squares = load_E + E;
      std::fill_n(load_E, E, 0.f);
      std::fill_n(p_E16, E * kLanes, 0.f);
      Vec squared(0);
      for (int64_t first = chunk * kChunk; first < chunk * kChunk + shape.tokens(chunk * kChunk, kChunk);
           first += kLanes) {
        const int64_t here = shape.tokens(first, kLanes);
        columns(shape, x, first, columns_D16);
        scores(shape, columns_D16, w, logit_E16);
        transpose(logit_E16, kLanes, logits + first * E, E, E, here);
        const Vec total = log_sum_exp(E, logit_E16);
        total.store(log_sum + first, static_cast<int>(here));
        const auto lanes = static_cast<__mmask16>((1 << here) - 1);
        for (int64_t e = 0; e < E; e++) {
          const Vec p = (load(logit_E16 + e * kLanes) - total).exp();
          store(p_E16 + e * kLanes, _mm512_mask_add_ps(load(p_E16 + e * kLanes), lanes, load(p_E16 + e * kLanes), p));
        }
        squared = _mm512_mask_add_ps(squared, lanes, squared, total * total);
        choose(shape, logit_E16, left_E, largest_K16, whose_K16);
        gates(shape, largest_K16, total);
        for (int64_t t = 0; t < here; t++)
          for (int64_t k = 0; k < K; k++) {
            const int32_t chosen = whose_K16[k * kLanes + t];
            gate[(first + t) * K + k] = largest_K16[k * kLanes + t];
            expert[(first + t) * K + k] = chosen;
            load_E[chosen]++;
          }
      }
      for (int64_t e = 0; e < E; e++) p_E[e] = _mm512_reduce_add_ps(load(p_E16 + e * kLanes));
      *squares = _mm512_reduce_add_ps(squared);
    }
  }
  double total = 0;
  const auto mean_of = static_cast<double>(std::max(N, int64_t(1)));  // of no tokens at all the losses are 0
  for (int64_t e = 0; e < E; e++) {
    double p = 0, tokens = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++)
      p += sums[chunk * summed + e], tokens += sums[chunk * summed + E + e];
    pull[e] = static_cast<float>(tokens * balance * E / (mean_of * K) / mean_of);
    total += pull[e] * p;
  }
  for (int64_t chunk = 0; chunk < chunks; chunk++) total += double(z) / mean_of * sums[chunk * summed + 2 * E];
  *loss = static_cast<float>(total);
}

// The gradient of a tile's logits, [E][16]; 0 behind the last token.
void logit_gradient(const Shape& shape, int64_t first, const float* logits, const float* gate, const int64_t* expert,
                    const float* log_sum, const float* pull, float z, const float* grad_gate, float grad_loss,
                    float* to) {
  const auto [N, D, E, K, threads, sum_to_one] = shape;
  const int64_t here = shape.tokens(first, kLanes);
  alignas(64) float through[kLanes] = {};  // of each token, the sum of gate x its gradient
  for (int64_t t = 0; t < here; t++)
    for (int64_t i = (first + t) * K; i < (first + t + 1) * K; i++) through[t] += gate[i] * grad_gate[i];
  if (here < kLanes) std::fill_n(to, E * kLanes, 0.f);
  transpose(logits + first * E, E, to, kLanes, here, E);
  const Vec total = Vec::loadu(log_sum + first, static_cast<int>(here));
  Vec pulled(0);
  for (int64_t e = 0; e < E; e++) {
    const Vec p = (load(to + e * kLanes) - total).exp();
    store(to + e * kLanes, p);
    pulled = at::vec::fmadd(p, Vec(pull[e]), pulled);
  }
  const auto lanes = static_cast<__mmask16>((1 << here) - 1);
  const Vec own = Vec(2 * z / N) * total - pulled, less = sum_to_one ? Vec(0) : load(through);
  for (int64_t e = 0; e < E; e++) {
    const Vec gradient = load(to + e * kLanes) * ((Vec(pull[e]) + own) * Vec(grad_loss) - less);
    store(to + e * kLanes, Vec(_mm512_maskz_mov_ps(lanes, gradient)));
  }
  for (int64_t t = 0; t < here; t++)
    for (int64_t i = (first + t) * K; i < (first + t + 1) * K; i++)
      to[expert[i] * kLanes + t] += gate[i] * (grad_gate[i] - (sum_to_one ? through[t] : 0));
}

// Of one tile's tokens, from the gradient of their logits.
template <typename X>
void input_gradient(const Shape& shape, int64_t first, const float* grad_E16, const float* w, X* grad_x) {
  for (int64_t d = 0; d < shape.D; d += kLanes) {
    Vec sum[kLanes];
    for (int64_t t = 0; t < kLanes; t++) sum[t] = Vec(0);
    for (int64_t e = 0; e < shape.E; e++) {
      const Vec weights = load(w + e * shape.D + d);
      for (int64_t t = 0; t < kLanes; t++) sum[t] = at::vec::fmadd(Vec(grad_E16[e * kLanes + t]), weights, sum[t]);
    }
    for (int64_t t = 0; t < shape.tokens(first, kLanes); t++) store(grad_x + (first + t) * shape.D + d, sum[t]);
  }
}

// Of `kTogether` experts' weights, in two registers' columns from d and from d_next on: the sum over all tokens.
template <typename X>
void weight_gradient(const Shape& shape, int64_t expert, int64_t d, int64_t d_next, const X* x, const float* grad_NE16,
                     float* grad_w) {
  const int64_t experts = std::min(kTogether, shape.E - expert);
  Vec total[2][kTogether];
  for (auto& part : total) std::fill_n(part, kTogether, Vec(0));
  for (int64_t start = 0; start < shape.N; start += kDepth) {
    Vec sum[2][kTogether];
    for (auto& part : sum) std::fill_n(part, kTogether, Vec(0));
    for (int64_t n = start; n < start + shape.tokens(start, kDepth); n++) {
      const Vec low = load(x + n * shape.D + d), high = load(x + n * shape.D + d_next);
      const float* gradients = grad_NE16 + (n / kLanes * shape.E + expert) * kLanes + n % kLanes;
      for (int64_t i = 0; i < kTogether; i++) {
        const Vec gradient(gradients[std::min(i, experts - 1) * kLanes]);
        sum[0][i] = at::vec::fmadd(gradient, low, sum[0][i]);
        sum[1][i] = at::vec::fmadd(gradient, high, sum[1][i]);
      }
    }
    for (int64_t part = 0; part < 2; part++)
      for (int64_t i = 0; i < kTogether; i++) total[part][i] = total[part][i] + sum[part][i];
  }
  for (int64_t i = 0; i < experts; i++) {
    store(grad_w + (expert + i) * shape.D + d, total[0][i]);
    store(grad_w + (expert + i) * shape.D + d_next, total[1][i]);
  }
}

template <typename X>
void backward(const Shape& shape, const X* x, const float* w, const float* logits, const float* gate,
              const int64_t* expert, const float* log_sum, const float* pull, float z, const float* grad_gate,
              const float* grad_loss, X* grad_x, float* grad_w) {
  const int64_t tiles = blocks(shape.N, kLanes);
  Scratch scratch(4 * tiles * shape.E * kLanes + 64);
  auto* grad_NE16 = scratch.take<float>(tiles * shape.E * kLanes);
#pragma omp parallel num_threads(shape.threads)
  {
#pragma omp for
    for (int64_t tile = 0; tile < tiles; tile++) {
      float* grad_E16 = grad_NE16 + tile * shape.E * kLanes;
      logit_gradient(shape, tile * kLanes, logits, gate, expert, log_sum, pull, z, grad_gate, *grad_loss, grad_E16);
      input_gradient(shape, tile * kLanes, grad_E16, w, grad_x);
    }
#pragma omp for collapse(2)
    for (int64_t e = 0; e < shape.E; e += kTogether)
      for (int64_t d = 0; d < shape.D; d += 2 * kLanes)
        weight_gradient(shape, e, d, std::min(d + kLanes, shape.D - kLanes), x, grad_NE16, grad_w);
  }
}

}  // namespace

extern "C" {

// x, and so its gradient, is float32 if `full`, bfloat16 otherwise; everything else is float32, but experts.
bool lmopt_route_forward(bool full, bool sum_to_one, int64_t N, int64_t D, int64_t E, int64_t K, int threads,
                         float balance, float z, const void* x, const float* w, float* logits, float* gate,
                         int64_t* expert, float* loss, float* log_sum, float* pull) {
  const Shape shape{N, D, E, K, threads, sum_to_one};
  return enough_memory([&] {
    if (full)
      forward(shape, static_cast<const float*>(x), w, balance, z, logits, gate, expert, loss, log_sum, pull);
    else
      forward(shape, static_cast<const half*>(x), w, balance, z, logits, gate, expert, loss, log_sum, pull);
  });
}

bool lmopt_route_backward(bool full, bool sum_to_one, int64_t N, int64_t D, int64_t E, int64_t K, int threads, float z,
                          const void* x, const float* w, const float* logits, const float* gate, const int64_t* expert,
                          const float* log_sum, const float* pull, const float* grad_gate, const float* grad_loss,
                          void* grad_x, float* grad_w) {
  const Shape shape{N, D, E, K, threads, sum_to_one};
  return enough_memory([&] {
    if (full)
      backward(shape, static_cast<const float*>(x), w, logits, gate, expert, log_sum, pull, z, grad_gate, grad_loss,
               static_cast<float*>(grad_x), grad_w);
    else
      backward(shape, static_cast<const half*>(x), w, logits, gate, expert, log_sum, pull, z, grad_gate, grad_loss,
               static_cast<half*>(grad_x), grad_w);
  });
}

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

}  // extern "C"
