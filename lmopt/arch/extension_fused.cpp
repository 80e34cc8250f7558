// Attention of a few new tokens to those in a cache and to each other: queries and keys turned to their positions, keys
// and values written behind those that are there, and each key and value read once for all queries that look at it.
//
// Letters: B sequences of T new tokens, H heads, K key heads that H / K of them share, C their width, a multiple of 32;
// a cache of R rows with room for S tokens each. Numbers are bfloat16 or float32, and sums float32. A key head of
// a sequence is one thread's and sums go in the order of keys: the bits depend neither on the number of threads nor on
// the other sequences.

#include <omp.h>

#include <algorithm>
#include <type_traits>

#include "products.h"

using namespace lmopt;

namespace {

constexpr int64_t kFetched = 32;  // keys between those that are looked at and those that are fetched
constexpr int64_t kKeys = 16;     // looked at by one query after the other, out of a core's first cache

// Begin to bring a block of numbers, or as many as are left, into the core's caches: the work of other queries would
// keep it from being asked for in time.
template <typename Number>
inline void fetch(const Number* from, int64_t left, int64_t block) {
  const auto* bytes = reinterpret_cast<const char*>(from);
  const int64_t wanted = std::min(left, block) * static_cast<int64_t>(sizeof(Number));
  for (int64_t at = 0; at < wanted; at += 64) _mm_prefetch(bytes + at, _MM_HINT_T0);
}

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

inline Vec multiplied(const float* q, const float* key, Vec sum) { return at::vec::fmadd(load(q), load(key), sum); }
inline Vec multiplied(const half* q, const half* key, Vec sum) {
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(q), (__m512bh)_mm512_loadu_si512(key));
}

// scores[j] = q . key j for `count` keys, at most 16.
template <typename Number>
void products(int64_t count, int64_t C, const Number* q, const Number* keys, float* scores) {
  constexpr int64_t wide = 64 / sizeof(Number);  // numbers of a register
  if (count == kKeys) {
    Vec a[kKeys];
#pragma GCC unroll 16
    for (int64_t j = 0; j < kKeys; j++) a[j] = Vec(0);
    for (int64_t c = 0; c < C; c += wide) {
#pragma GCC unroll 16
      for (int64_t j = 0; j < kKeys; j++) a[j] = multiplied(q + c, keys + j * C + c, a[j]);
    }
    store(scores, sums(a));
    return;
  }
  for (int64_t j = 0; j < count; j++) {
    Vec a(0);
    for (int64_t c = 0; c < C; c += wide) a = multiplied(q + c, keys + j * C + c, a);
    scores[j] = _mm512_reduce_add_ps(a);
  }
}

// A block of values as they are summed: as they are, or pairs of rows as words, the last of an odd number with zeros.
struct FloatValues {
  const float* rows;
  int64_t C;

  FloatValues(const float* values, int64_t, int64_t C, word*) : rows(values), C(C) {}

  // sum += p[j] x value j for `count` values, from column c on, in registers side by side.
  template <int registers>
  void add(int64_t count, const float* p, int64_t c, Vec (&sum)[registers]) const {
    for (int64_t j = 0; j < count; j++) {
      const Vec share(p[j]);
#pragma GCC unroll 4
      for (int n = 0; n < registers; n++) sum[n] = at::vec::fmadd(share, load(rows + j * C + c + n * kLanes), sum[n]);
    }
  }
};
struct HalfValues {
  const word* pairs;
  int64_t C;

  HalfValues(const half* values, int64_t count, int64_t C, word* room) : pairs(room), C(C) {
    for (int64_t j = 0; j < count; j += 2)
      for (int64_t c = 0; c < C; c += kLanes) {
        const half* low = values + j * C + c;
        const __m512i rows = _mm512_castsi256_si512(bits(low));
        const __m256i high = j + 1 < count ? bits(low + C) : _mm256_setzero_si256();
        _mm512_storeu_si512(room + j / 2 * C + c, paired(_mm512_inserti64x4(rows, high, 1)));
      }
  }

  template <int registers>
  void add(int64_t count, const float* p, int64_t c, Vec (&sum)[registers]) const {
    alignas(64) half rounded[kKeys];  // with a 0 behind the last one
    store(rounded, load(p));
    const auto add_pair = [&](int64_t j, __m512i seen) {
      const __m512i share = _mm512_set1_epi32(reinterpret_cast<const int*>(rounded)[j / 2]);
#pragma GCC unroll 4
      for (int n = 0; n < registers; n++) {
        const __m512i two = _mm512_and_si512(seen, _mm512_loadu_si512(pairs + j / 2 * C + c + n * kLanes));
        sum[n] = _mm512_dpbf16_ps(sum[n], (__m512bh)share, (__m512bh)two);
      }
    };
    const __m512i both = _mm512_set1_epi32(-1);
    for (int64_t j = 0; j + 1 < count; j += 2) add_pair(j, both);
    if (count % 2 == 1) add_pair(count - 1, _mm512_set1_epi32(0xffff));  // nothing times infinity would not be 0
  }
};

template <int registers, typename Values>
void add_part(const Values& values, int64_t count, const float* p, int64_t c, float* sum) {
  Vec part[registers];
  for (int n = 0; n < registers; n++) part[n] = load(sum + c + n * kLanes);
  values.add(count, p, c, part);
  for (int n = 0; n < registers; n++) store(sum + c + n * kLanes, part[n]);
}

template <typename Values>
void add_values(const Values& values, int64_t count, const float* p, float* sum) {
  int64_t c = 0;
  for (; c + 4 * kLanes <= values.C; c += 4 * kLanes) add_part<4>(values, count, p, c, sum);
  for (; c < values.C; c += kLanes) add_part<1>(values, count, p, c, sum);
}

// qkv (B x T x (H + 2K) x C), tables of positions (S x C), keys and values (R x K x S x C) to out (B x T x H x C).
// Sequence b is row rows[b] of the cache, where it has start[b] tokens.
template <typename Number>
void extend(int64_t B, int64_t T, int64_t H, int64_t K, int64_t C, int64_t S, int threads, const Number* qkv,
            const Number* cosine, const Number* sine, Number* keys, Number* values, const int64_t* start,
            const int64_t* rows, Number* out) {
  using Values = std::conditional_t<std::is_same_v<Number, half>, HalfValues, FloatValues>;
  const int64_t shared = H / K, queries = T * shared;
  const int64_t room = filled_up(*std::max_element(start, start + B) + T, kLanes);
  const int64_t bytes = filled_up(4 * (queries * (2 * C + room + 1) + kKeys / 2 * C), 64) + 5 * 64;
  const float scale = 1 / std::sqrt(static_cast<float>(C));
  Scratch scratch(threads * bytes);
  auto* all = scratch.take<char>(threads * bytes);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t i = 0; i < B * K; i++) {
    Room own(all + omp_get_thread_num() * bytes);
    auto* q = own.take<Number>(queries * C);
    auto* sum = own.take<float>(queries * C);
    auto* scores = own.take<float>(queries * room);
    auto* share = own.take<float>(queries);
    auto* pairs = own.take<word>(kKeys / 2 * C);
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
    const auto seen = [&](int64_t r, int64_t j) { return std::min(kKeys, before + r / shared + 1 - j); };
    for (int64_t j = 0; j < before + T; j += kKeys) {
      fetch(key + (j + kFetched) * C, (before + T - j - kFetched) * C, kKeys * C);
      for (int64_t r = 0; r < queries; r++)
        if (seen(r, j) > 0) products(seen(r, j), C, q + r * C, key + j * C, scores + r * room + j);
    }
    for (int64_t r = 0; r < queries; r++) share[r] = exponentials(before + r / shared + 1, scale, scores + r * room);
    std::fill_n(sum, queries * C, 0.f);
    for (int64_t j = 0; j < before + T; j += kKeys) {
      fetch(value + (j + kFetched) * C, (before + T - j - kFetched) * C, kKeys * C);
      const Values block(value + j * C, std::min(kKeys, before + T - j), C, pairs);
      for (int64_t r = 0; r < queries; r++)
        if (seen(r, j) > 0) add_values(block, seen(r, j), scores + r * room + j, sum + r * C);
    }
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
  return enough_memory([&] { extend(B, T, H, K, C, S, threads, qkv, cosine, sine, keys, values, start, rows, out); });
}

bool lmopt_extend(int64_t B, int64_t T, int64_t H, int64_t K, int64_t C, int64_t S, int threads, const half* qkv,
                  const half* cosine, const half* sine, half* keys, half* values, const int64_t* start,
                  const int64_t* rows, half* out) {
  return enough_memory([&] { extend(B, T, H, K, C, S, threads, qkv, cosine, sine, keys, values, start, rows, out); });
}

}  // extern "C"
