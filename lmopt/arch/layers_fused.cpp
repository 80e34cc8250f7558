// All layers of a decoder over a few new tokens, in one call: what is asked of several kernels a layer otherwise, of
// which each takes as long to be called as a small matrix to be read.
//
// Letters: L layers; B sequences of T new tokens of width D; H heads, K key heads, C their width; F inner width; a
// cache of R rows with room for S tokens each.

#include "products.h"

using namespace lmopt;

extern "C" {

bool lmopt_multiply_panels(int64_t N, int64_t D, int64_t F, int threads, float eps, int behind, const half* x,
                           const word* panels, const float* gains, const half* others, half* y);
bool lmopt_multiply_byte_panels(bool two_bytes, int64_t N, int64_t D, int64_t F, int threads, float eps, int behind,
                                const half* x, const word* panels, const float* scale, const int32_t* shift,
                                const float* gains, const half* others, half* y);
bool lmopt_extend(int64_t B, int64_t T, int64_t H, int64_t K, int64_t C, int64_t S, int threads, const half* qkv,
                  const half* cosine, const half* sine, half* keys, half* values, const int64_t* start,
                  const int64_t* rows, half* out);
}

namespace {

struct Matrix {
  const word* panels;
  const float* scale;  // of 8-bit weights; null where they are bfloat16
  const int32_t* shift;
};

// As Python has them, an address each.
struct Layer {
  const float* attention_gains;
  Matrix qkv, output;
  const float* ffn_gains;
  Matrix up, down;
};
static_assert(sizeof(Layer) == 14 * sizeof(void*));

}  // namespace

extern "C" {

// x (N x D with N = B x T) becomes what the last layer makes of it. `room` holds N x ((H + 2K) C + H C + F) numbers.
bool lmopt_decode_layers(bool two_bytes, int64_t L, int64_t B, int64_t T, int64_t D, int64_t H, int64_t K, int64_t C,
                         int64_t F, int64_t R, int64_t S, int threads, float eps, int behind, const Layer* layers,
                         const half* cosine, const half* sine, half* keys, half* values, const int64_t* start,
                         const int64_t* rows, half* x, half* room) {
  const int64_t N = B * T, all = (H + 2 * K) * C, apart = R * K * S * C;
  half *qkv = room, *attended = qkv + N * all, *inner = attended + N * H * C;
  const auto multiply = [&](const Matrix& matrix, int64_t inputs, int64_t outputs, int then, const float* gains,
                            const half* from, const half* others, half* to) {
    if (matrix.scale == nullptr)
      return lmopt_multiply_panels(N, inputs, outputs, threads, eps, then, from, matrix.panels, gains, others, to);
    return lmopt_multiply_byte_panels(two_bytes, N, inputs, outputs, threads, eps, then, from, matrix.panels,
                                      matrix.scale, matrix.shift, gains, others, to);
  };
  for (int64_t l = 0; l < L; l++) {
    const Layer& layer = layers[l];
    const bool done = multiply(layer.qkv, D, all, 0, layer.attention_gains, x, nullptr, qkv) &&
                      lmopt_extend(B, T, H, K, C, S, threads, qkv, cosine, sine, keys + l * apart, values + l * apart,
                                   start, rows, attended) &&
                      multiply(layer.output, H * C, D, 0, nullptr, attended, x, x) &&
                      multiply(layer.up, D, F, behind, layer.ffn_gains, x, nullptr, inner) &&
                      multiply(layer.down, F, D, 0, nullptr, inner, x, x);
    if (!done) return false;
  }
  return true;
}

}  // extern "C"
