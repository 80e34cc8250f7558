// What a training step does to each row of numbers beside products: norms, activations, positions and the head's
// softmax, forward and backward, in bfloat16 and float32. A row comes from memory once and goes there once, and is
// float32 in between.
//
// Letters: N tokens, D width, F inner width, V vocabulary; B sequences of T tokens, H heads, K key heads, C their
// width. Each row is one thread's; what is summed over rows is summed chunk by chunk, in their order: the bits do not
// depend on the number of threads. Rows are multiples of 16, halves of a head too.

#include <omp.h>

#include <algorithm>
#include <limits>

#include "kernels.h"

using namespace lmopt;

namespace {

constexpr int64_t kChunk = 64;  // rows that are summed before chunks are

// --- norms ---------------------------------------------------------------------------------------

// Each row's scale is kept.
template <typename Number>
void norm(int64_t N, int64_t D, float eps, int threads, const Number* x, const float* weight, Number* y, float* scale) {
#pragma omp parallel for num_threads(threads)
  for (int64_t n = 0; n < N; n++) scale[n] = norm_row(D, eps, x + n * D, weight, y + n * D);
}

template <typename Number>
void norm_backward(int64_t N, int64_t D, int threads, const Number* x, const float* weight, const float* scale,
                   const Number* grad, Number* grad_x, float* grad_weight) {
  const int64_t chunks = blocks(N, kChunk);
  Scratch scratch(4 * chunks * D + 64);
  auto* sums = scratch.take<float>(chunks * D);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      float* sum = sums + chunk * D;
      std::fill_n(sum, D, 0.f);
      for (int64_t n = chunk * kChunk; n < std::min(N, (chunk + 1) * kChunk); n++) {
        Vec along(0);
        for (int64_t d = 0; d < D; d += kLanes) {
          const Vec product = load(grad + n * D + d) * load(x + n * D + d) * Vec(scale[n]);
          store(sum + d, load(sum + d) + product);
          along = at::vec::fmadd(product, load(weight + d), along);
        }
        const Vec less(_mm512_reduce_add_ps(along) / static_cast<float>(D) * scale[n]);  // what the scale depends on
        for (int64_t d = 0; d < D; d += kLanes) {
          const Vec through = load(grad + n * D + d) * load(weight + d);
          store(grad_x + n * D + d, (through - load(x + n * D + d) * less) * Vec(scale[n]));
        }
      }
    }
#pragma omp for
    for (int64_t d = 0; d < D; d += kLanes) {
      Vec total(0);
      for (int64_t chunk = 0; chunk < chunks; chunk++) total = total + load(sums + chunk * D + d);
      store(grad_weight + d, total);
    }
  }
}

// --- activations ---------------------------------------------------------------------------------

template <bool gated, typename Number>
void activate(int64_t N, int64_t F, int threads, const Number* inner, Number* y) {
  constexpr int64_t P = gated ? 2 : 1;
#pragma omp parallel for num_threads(threads)
  for (int64_t n = 0; n < N; n++)
    for (int64_t f = 0; f < F; f += kLanes) {
      const Number* row = inner + n * P * F + f;
      store(y + n * F + f, activated<gated>(load(row), gated ? load(row + F) : Vec(0)));
    }
}

template <bool gated, typename Number>
void activate_backward(int64_t N, int64_t F, int threads, const Number* inner, const Number* grad, Number* grad_inner) {
  constexpr int64_t P = gated ? 2 : 1;
#pragma omp parallel for num_threads(threads)
  for (int64_t n = 0; n < N; n++)
    for (int64_t f = 0; f < F; f += kLanes) {
      const Number* row = inner + n * P * F + f;
      Number* to = grad_inner + n * P * F + f;
      const Vec g = load(grad + n * F + f);
      const auto found = derived<gated>(load(row), gated ? load(row + F) : Vec(0));
      store(to, g * found.by_a);
      if constexpr (gated) store(to + F, g * found.by_u);
    }
}

// --- heads ---------------------------------------------------------------------------------------

// qkv (B x T x (H + 2K) x C) to q (B x H x T x C), k and v (B x K x T x C), queries and keys turned; or back, with
// gradients.
template <bool back, typename Number>
void heads(int64_t B, int64_t T, int64_t H, int64_t K, int64_t C, int threads, const Number* cosine, const Number* sine,
           Number* qkv, Number* q, Number* k, Number* v) {
  const int64_t all = H + 2 * K;
#pragma omp parallel for collapse(2) num_threads(threads)
  for (int64_t b = 0; b < B; b++)
    for (int64_t t = 0; t < T; t++)
      for (int64_t h = 0; h < all; h++) {
        Number* together = qkv + ((b * T + t) * all + h) * C;
        Number* apart = h < H       ? q + ((b * H + h) * T + t) * C
                        : h < H + K ? k + ((b * K + h - H) * T + t) * C
                                    : v + ((b * K + h - H - K) * T + t) * C;
        Number *from = back ? apart : together, *to = back ? together : apart;
        if (h < H + K)
          turn(C, from, cosine + t * C, sine + t * C, back, to);
        else
          std::copy_n(from, C, to);
      }
}

// --- the output head -----------------------------------------------------------------------------

// Logits become softmax - one_hot(target), the gradient of a token's loss, which is returned too, in nats. A token
// whose target is negative has neither.
template <typename Number>
void softmax_minus_target(int64_t N, int64_t V, int threads, Number* logits, const int64_t* target, float* nats) {
  Scratch scratch(int64_t(4) * threads * filled_up(V, kLanes) + 64);
  auto* rows = scratch.take<float>(threads * filled_up(V, kLanes));
#pragma omp parallel num_threads(threads)
  {
    float* e = rows + omp_get_thread_num() * filled_up(V, kLanes);
#pragma omp for
    for (int64_t n = 0; n < N; n++) {
      Number* row = logits + n * V;
      if (target[n] < 0) {
        std::fill_n(row, V, Number(0));
        nats[n] = 0;
        continue;
      }
      Vec largest(-std::numeric_limits<float>::infinity()), sum(0);
      for (int64_t v = 0; v < V; v += kLanes) largest = at::vec::maximum(largest, load(row + v));
      const float most = _mm512_reduce_max_ps(largest);
      for (int64_t v = 0; v < V; v += kLanes) {
        const Vec power = (load(row + v) - Vec(most)).exp_u20();
        store(e + v, power);
        sum = sum + power;
      }
      alignas(64) float wanted[kLanes];
      store(wanted, load(row + target[n] / kLanes * kLanes));
      const float total = _mm512_reduce_add_ps(sum);
      nats[n] = std::log(total) + most - wanted[target[n] % kLanes];
      e[target[n]] -= total;
      const Vec share(share_of(total));
      if (!std::isfinite(total)) nats[n] = std::numeric_limits<float>::quiet_NaN();
      for (int64_t v = 0; v < V; v += kLanes) store(row + v, load(e + v) * share);
    }
  }
}

// Of each row of logits the logarithm of the sum of their exponentials, and the first of the largest.
void summarise(int64_t N, int64_t V, int threads, const float* logits, float* log_sum, int64_t* best) {
#pragma omp parallel for num_threads(threads)
  for (int64_t n = 0; n < N; n++) {
    const float* row = logits + n * V;
    Vec largest(-std::numeric_limits<float>::infinity()), sum(0);
    for (int64_t v = 0; v < V; v += kLanes) largest = at::vec::maximum(largest, load(row + v));
    const bool none = _mm512_cmp_ps_mask(largest, largest, _CMP_UNORD_Q) != 0;
    const float most = none ? std::numeric_limits<float>::quiet_NaN() : _mm512_reduce_max_ps(largest);
    for (int64_t v = 0; v < V; v += kLanes) sum = sum + (load(row + v) - Vec(most)).exp_u20();
    log_sum[n] = std::isfinite(most) ? std::log(_mm512_reduce_add_ps(sum)) + most : most;
    best[n] = std::find_if(row, row + V, [&](float x) { return none ? std::isnan(x) : x == most; }) - row;
  }
}

}  // namespace

extern "C" {

bool lmopt_norm_forward(int64_t N, int64_t D, float eps, int threads, const half* x, const float* weight, half* y,
                        float* scale) {
  return enough_memory([&] { norm(N, D, eps, threads, x, weight, y, scale); });
}

bool lmopt_norm_forward_float(int64_t N, int64_t D, float eps, int threads, const float* x, const float* weight,
                              float* y, float* scale) {
  return enough_memory([&] { norm(N, D, eps, threads, x, weight, y, scale); });
}

bool lmopt_norm_backward(int64_t N, int64_t D, int threads, const half* x, const float* weight, const float* scale,
                         const half* grad, half* grad_x, float* grad_weight) {
  return enough_memory([&] { norm_backward(N, D, threads, x, weight, scale, grad, grad_x, grad_weight); });
}

bool lmopt_norm_backward_float(int64_t N, int64_t D, int threads, const float* x, const float* weight,
                               const float* scale, const float* grad, float* grad_x, float* grad_weight) {
  return enough_memory([&] { norm_backward(N, D, threads, x, weight, scale, grad, grad_x, grad_weight); });
}

bool lmopt_activation_forward(bool gated, int64_t N, int64_t F, int threads, const half* inner, half* y) {
  return enough_memory([&] { (gated ? activate<true, half> : activate<false, half>)(N, F, threads, inner, y); });
}

bool lmopt_activation_forward_float(bool gated, int64_t N, int64_t F, int threads, const float* inner, float* y) {
  return enough_memory([&] { (gated ? activate<true, float> : activate<false, float>)(N, F, threads, inner, y); });
}

bool lmopt_activation_backward(bool gated, int64_t N, int64_t F, int threads, const half* inner, const half* grad,
                               half* grad_inner) {
  auto* pass = gated ? activate_backward<true, half> : activate_backward<false, half>;
  return enough_memory([&] { pass(N, F, threads, inner, grad, grad_inner); });
}

bool lmopt_activation_backward_float(bool gated, int64_t N, int64_t F, int threads, const float* inner,
                                     const float* grad, float* grad_inner) {
  auto* pass = gated ? activate_backward<true, float> : activate_backward<false, float>;
  return enough_memory([&] { pass(N, F, threads, inner, grad, grad_inner); });
}

bool lmopt_heads_forward(int64_t B, int64_t T, int64_t H, int64_t K, int64_t C, int threads, const half* cosine,
                         const half* sine, half* qkv, half* q, half* k, half* v) {
  return enough_memory([&] { heads<false>(B, T, H, K, C, threads, cosine, sine, qkv, q, k, v); });
}

bool lmopt_heads_forward_float(int64_t B, int64_t T, int64_t H, int64_t K, int64_t C, int threads, const float* cosine,
                               const float* sine, float* qkv, float* q, float* k, float* v) {
  return enough_memory([&] { heads<false>(B, T, H, K, C, threads, cosine, sine, qkv, q, k, v); });
}

bool lmopt_heads_backward(int64_t B, int64_t T, int64_t H, int64_t K, int64_t C, int threads, const half* cosine,
                          const half* sine, half* qkv, half* q, half* k, half* v) {
  return enough_memory([&] { heads<true>(B, T, H, K, C, threads, cosine, sine, qkv, q, k, v); });
}

bool lmopt_heads_backward_float(int64_t B, int64_t T, int64_t H, int64_t K, int64_t C, int threads, const float* cosine,
                                const float* sine, float* qkv, float* q, float* k, float* v) {
  return enough_memory([&] { heads<true>(B, T, H, K, C, threads, cosine, sine, qkv, q, k, v); });
}

bool lmopt_softmax_minus_target(int64_t N, int64_t V, int threads, half* logits, const int64_t* target, float* nats) {
  return enough_memory([&] { softmax_minus_target(N, V, threads, logits, target, nats); });
}

bool lmopt_softmax_minus_target_float(int64_t N, int64_t V, int threads, float* logits, const int64_t* target,
                                      float* nats) {
  return enough_memory([&] { softmax_minus_target(N, V, threads, logits, target, nats); });
}

bool lmopt_summarise(int64_t N, int64_t V, int threads, const float* logits, float* log_sum, int64_t* best) {
  return enough_memory([&] { summarise(N, V, threads, logits, log_sum, best); });
}

}  // extern "C"
