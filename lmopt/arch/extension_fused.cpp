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
constexpr int64_t kFew = 2;    // queries that make float32 of keys each for itself, which more of them do once

// The sum of each of 16 registers, in one: by halves of pairs, of pairs of pairs, and so on.
inline Vec sums(const Vec (&a)[kKeys]) {
  __m512 pairs[8], fours[4];
  for (int i = 0; i < 8; i++)
    pairs[i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]) + _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
  for (int i = 0; i < 4; i++) {
    const __m512d low = _mm512_castps_pd(pairs[2 * i]), high = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high)) + _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
  }
  const auto quarters = [](__m512 x, __m512 y) {
    return _mm512_shuffle_f32x4(x, y, 0x88) + _mm512_shuffle_f32x4(x, y, 0xdd);
  };
  return quarters(quarters(fours[0], fours[1]), quarters(fours[2], fours[3]));
}

// scores[j] = q . key j for `count` keys, at most 16.
template <typename Number>
void products(int64_t count, int64_t C, const float* q, const Number* keys, float* scores) {
  if (count == kKeys) {
    Vec a[kKeys];
#pragma GCC unroll 16
    for (int64_t j = 0; j < kKeys; j++) a[j] = Vec(0);
    for (int64_t c = 0; c < C; c += kLanes) {
      const Vec numbers = load(q + c);
#pragma GCC unroll 16
      for (int64_t j = 0; j < kKeys; j++) a[j] = at::vec::fmadd(numbers, load(keys + j * C + c), a[j]);
    }
    store(scores, sums(a));
    return;
  }
  for (int64_t j = 0; j < count; j++) {
    Vec a(0);
    for (int64_t c = 0; c < C; c += kLanes) a = at::vec::fmadd(load(q + c), load(keys + j * C + c), a);
    scores[j] = _mm512_reduce_add_ps(a);
  }
}

// sum += p[j] x value j for `count` values, of each of which `registers` are summed side by side.
template <int registers, typename Number>
void add_part(int64_t count, int64_t C, const float* p, const Number* values, float* sum) {
  Vec part[registers];
#pragma GCC unroll 4
  for (int n = 0; n < registers; n++) part[n] = load(sum + n * kLanes);
  for (int64_t j = 0; j < count; j++) {
    const Vec share(p[j]);
#pragma GCC unroll 4
    for (int n = 0; n < registers; n++) part[n] = at::vec::fmadd(share, load(values + j * C + n * kLanes), part[n]);
  }
#pragma GCC unroll 4
  for (int n = 0; n < registers; n++) store(sum + n * kLanes, part[n]);
}

template <typename Number>
void add_values(int64_t count, int64_t C, const float* p, const Number* values, float* sum) {
  int64_t c = 0;
  for (; c + 4 * kLanes <= C; c += 4 * kLanes) add_part<4>(count, C, p, values + c, sum + c);
  for (; c < C; c += kLanes) add_part<1>(count, C, p, values + c, sum + c);
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

// Rows of numbers as float32: themselves, or a copy in `room`.
inline const float* wide(const float* from, int64_t, float*) { return from; }
inline const float* wide(const half* from, int64_t count, float* room) {
  for (int64_t c = 0; c < count; c += kLanes) store(room + c, load(from + c));
  return room;
}

// qkv (B x T x (H + 2K) x C), tables of positions (S x C), keys and values (R x K x S x C) to out (B x T x H x C).
// Sequence b is row rows[b] of the cache, where it has start[b] tokens.
template <typename Number>
void extend(int64_t B, int64_t T, int64_t H, int64_t K, int64_t C, int64_t S, int threads, const Number* qkv,
            const Number* cosine, const Number* sine, Number* keys, Number* values, const int64_t* start,
            const int64_t* rows, Number* out) {
  const int64_t shared = H / K, queries = T * shared;
  const int64_t room = filled_up(*std::max_element(start, start + B) + T, kLanes);
  const int64_t bytes = filled_up(4 * (queries * (2 * C + room + 1) + kKeys * C), 64) + 5 * 64;
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
    auto* block = own.take<float>(kKeys * C);
    const int64_t b = i / K, head = i % K, before = start[b];
    Number *key = keys + (rows[b] * K + head) * S * C, *value = values + (rows[b] * K + head) * S * C;
    for (int64_t t = 0; t < T; t++) {
      const Number* token = qkv + (b * T + t) * (H + 2 * K) * C;
      const int64_t place = (before + t) * C;
      for (int64_t g = 0; g < shared; g++)
        turn(C, token + (head * shared + g) * C, cosine + place, sine + place, false, q + (t * shared + g) * C);
      turn(C, token + (H + head) * C, cosine + place, sine + place, false, key + place);
      std::copy_n(token + (H + K + head) * C, C, value + place);
    }
    for (int64_t c = 0; c < queries * C; c += kLanes) store(q + c, load(q + c) * Vec(scale));
    std::fill_n(sum, queries * C, 0.f);
    // work(query, first row, number of rows that it sees, rows) for each block of a head's keys or values
    const auto each_block = [&](const Number* from, const auto& work) {
      for (int64_t j = 0; j < before + T; j += kKeys) {
        const auto each_query = [&](const auto* numbers) {
          for (int64_t r = 0; r < queries; r++) {
            const int64_t count = std::min(kKeys, before + r / shared + 1 - j);
            if (count > 0) work(r, j, count, numbers);
          }
        };
        if (queries <= kFew)
          each_query(from + j * C);
        else
          each_query(wide(from + j * C, std::min(kKeys, before + T - j) * C, block));
      }
    };
    each_block(key, [&](int64_t r, int64_t j, int64_t count, const auto* numbers) {
      products(count, C, q + r * C, numbers, scores + r * room + j);
    });
    for (int64_t r = 0; r < queries; r++) share[r] = exponentials(before + r / shared + 1, scores + r * room);
    each_block(value, [&](int64_t r, int64_t j, int64_t count, const auto* numbers) {
      add_values(count, C, scores + r * room + j, numbers, sum + r * C);
    });
    for (int64_t r = 0; r < queries; r++) {
      Number* to = out + ((b * T + r / shared) * H + head * shared + r % shared) * C;
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
