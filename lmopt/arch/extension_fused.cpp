// Attention of a few new tokens to those in a cache and to each other: queries and keys turned to their positions, keys
// and values written behind those that are there, and each key and value read once for all queries that look at it.
//
// Letters: B sequences of T new tokens, H heads, K key heads that H / K of them share, C their width, a multiple of 32;
// a cache of R rows with room for S tokens each. Numbers are bfloat16 or float32, and float32 in between. A key head of
// a sequence is one thread's and sums go in the order of keys: the bits depend neither on the number of threads nor on
// the other sequences.

#include <omp.h>

#include <algorithm>
#include <limits>

#include "kernels.h"

using namespace lmopt;

namespace {

constexpr int64_t kKeys = 16;  // looked at by one query after the other, out of a core's first cache

// scores[j] = q . key j for `count` keys.
template <typename N>
void products(int64_t count, int64_t C, const float* q, const N* keys, float* scores) {
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const N* key = keys + j * C;
    Vec a(0), b(0), c(0), d(0);
    for (int64_t i = 0; i < C; i += kLanes) {
      const Vec numbers = load(q + i);
      a = at::vec::fmadd(numbers, load(key + i), a);
      b = at::vec::fmadd(numbers, load(key + C + i), b);
      c = at::vec::fmadd(numbers, load(key + 2 * C + i), c);
      d = at::vec::fmadd(numbers, load(key + 3 * C + i), d);
    }
    scores[j] = _mm512_reduce_add_ps(a);
    scores[j + 1] = _mm512_reduce_add_ps(b);
    scores[j + 2] = _mm512_reduce_add_ps(c);
    scores[j + 3] = _mm512_reduce_add_ps(d);
  }
  for (; j < count; j++) {
    Vec a(0);
    for (int64_t i = 0; i < C; i += kLanes) a = at::vec::fmadd(load(q + i), load(keys + j * C + i), a);
    scores[j] = _mm512_reduce_add_ps(a);
  }
}

// sum += p[j] x value j for `count` values.
template <typename N>
void add_values(int64_t count, int64_t C, const float* p, const N* values, float* sum) {
  for (int64_t i = 0; i < C; i += 2 * kLanes) {
    Vec low = load(sum + i), high = load(sum + i + kLanes);
    for (int64_t j = 0; j < count; j++) {
      const Vec share(p[j]);
      low = at::vec::fmadd(share, load(values + j * C + i), low);
      high = at::vec::fmadd(share, load(values + j * C + i + kLanes), high);
    }
    store(sum + i, low);
    store(sum + i + kLanes, high);
  }
}

// Scores become exponentials; returned is what makes shares of them.
float exponentials(int64_t seen, float* scores) {
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  std::fill(scores + seen, scores + filled_up(seen, kLanes), lowest);
  Vec largest(lowest), sum(0);
  for (int64_t j = 0; j < seen; j += kLanes) largest = at::vec::maximum(largest, load(scores + j));
  const Vec most(_mm512_reduce_max_ps(largest));
  for (int64_t j = 0; j < seen; j += kLanes) {
    const Vec power = (load(scores + j) - most).exp_u20();
    store(scores + j, power);
    sum = sum + power;
  }
  return share_of(_mm512_reduce_add_ps(sum));
}

// qkv (B x T x (H + 2K) x C), tables of positions (S x C), keys and values (R x K x S x C) to out (B x T x H x C).
// Sequence b is row rows[b] of the cache, where it has start[b] tokens.
template <typename N>
void extend(int64_t B, int64_t T, int64_t H, int64_t K, int64_t C, int64_t S, int threads, const N* qkv,
            const N* cosine, const N* sine, N* keys, N* values, const int64_t* start, const int64_t* rows, N* out) {
  const int64_t shared = H / K, queries = T * shared;
  const int64_t room = filled_up(*std::max_element(start, start + B) + T, kLanes);
  const int64_t bytes = filled_up(4 * queries * (2 * C + room + 1), 64) + 4 * 64;
  const float scale = 1 / std::sqrt(static_cast<float>(C));
  Scratch scratch(threads * bytes);
  auto* all = scratch.take<char>(threads * bytes);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t i = 0; i < B * K; i++) {
    Room own(all + omp_get_thread_num() * bytes);
    auto* q = own.take<float>(queries * C);
    auto* sum = own.take<float>(queries * C);
    auto* scores = own.take<float>(queries * room);
    auto* share = own.take<float>(queries);
    const int64_t b = i / K, head = i % K, before = start[b];
    N *key = keys + (rows[b] * K + head) * S * C, *value = values + (rows[b] * K + head) * S * C;
    for (int64_t t = 0; t < T; t++) {
      const N* token = qkv + (b * T + t) * (H + 2 * K) * C;
      const int64_t place = (before + t) * C;
      for (int64_t g = 0; g < shared; g++)
        turn(C, token + (head * shared + g) * C, cosine + place, sine + place, false, q + (t * shared + g) * C);
      turn(C, token + (H + head) * C, cosine + place, sine + place, false, key + place);
      std::copy_n(token + (H + K + head) * C, C, value + place);
    }
    for (int64_t c = 0; c < queries * C; c += kLanes) store(q + c, load(q + c) * Vec(scale));
    const auto each_block = [&](const auto& work) {  // work(query, first key, number of keys that it sees of a block)
      for (int64_t j = 0; j < before + T; j += kKeys)
        for (int64_t r = 0; r < queries; r++) {
          const int64_t count = std::min(kKeys, before + r / shared + 1 - j);
          if (count > 0) work(r, j, count);
        }
    };
    each_block([&](int64_t r, int64_t j, int64_t count) {
      products(count, C, q + r * C, key + j * C, scores + r * room + j);
    });
    std::fill_n(sum, queries * C, 0.f);
    for (int64_t r = 0; r < queries; r++) share[r] = exponentials(before + r / shared + 1, scores + r * room);
    each_block([&](int64_t r, int64_t j, int64_t count) {
      add_values(count, C, scores + r * room + j, value + j * C, sum + r * C);
    });
    for (int64_t r = 0; r < queries; r++) {
      N* to = out + ((b * T + r / shared) * H + head * shared + r % shared) * C;
      for (int64_t c = 0; c < C; c += kLanes) store(to + c, load(sum + r * C + c) * Vec(share[r]));
    }
  }
}

}  // namespace

extern "C" {

bool lmopt_extend_float(int64_t B, int64_t T, int64_t H, int64_t K, int64_t C, int64_t S, int threads, const float* qkv,
                        const float* cosine, const float* sine, float* keys, float* values, const int64_t* start,
                        const int64_t* rows, float* out) {
  return enough_memory(
      [&] { extend(B, T, H, K, C, S, threads, qkv, cosine, sine, keys, values, start, rows, out); });
}

bool lmopt_extend_bfloat16(int64_t B, int64_t T, int64_t H, int64_t K, int64_t C, int64_t S, int threads,
                           const half* qkv, const half* cosine, const half* sine, half* keys, half* values,
                           const int64_t* start, const int64_t* rows, half* out) {
  return enough_memory(
      [&] { extend(B, T, H, K, C, S, threads, qkv, cosine, sine, keys, values, start, rows, out); });
}

}  // extern "C"
