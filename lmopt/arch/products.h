// Products of matrices, and what lays out their operands. They are oneDNN's, as torch offers them to its own kernels
// (at::native::cpublas::brgemm): A is row-major, C is float32, and B row-major in float32; in bfloat16 it holds pairs
// of rows as words, [K/2][columns].

#pragma once

#include <ATen/native/CPUBlas.h>
#include <sys/mman.h>

#include "kernels.h"

namespace lmopt {

constexpr int64_t kAhead = 64;  // numbers between what is packed of a matrix and what is fetched of it

// 32 numbers, the first 16 of them from `low`.
inline __m512i both(Vec low, Vec high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
inline __m512i both(const float* low, const float* high) { return both(Vec::loadu(low), Vec::loadu(high)); }
inline __m512i both(const half* low, const half* high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(bits(low)), bits(high), 1);
}

// One word a column from two rows of 16.
inline __m512i paired(__m512i rows) {
  alignas(64) static constexpr half order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), rows);
}

// Out of address space oneDNN does not throw but crash: there must be room for the products that it will compile.
inline void refuse_without_room(size_t bytes) {
  void* room = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) throw std::bad_alloc();
  munmap(room, bytes);
}

inline void product(int64_t m, int64_t n, int64_t k, const half* a, int64_t lda, const word* b, int64_t ldb, float* c,
                    bool add = false) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, n, add, reinterpret_cast<const at::BFloat16*>(a),
                              reinterpret_cast<const at::BFloat16*>(b), c);
}

inline void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                    bool add = false) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, n, add, a, b, c);
}

// B of a product with W^T, from `n` rows of W (n x k).
template <typename W>
void pack_transposed(const W* w, int64_t ldw, int64_t n, int64_t k, word* to, int64_t ldo) {
  constexpr int64_t kPiece = 16 * kLanes;  // numbers of a row at a time
  alignas(64) word words[kLanes * kPiece / 2];
  for (int64_t i = 0; i < n; i += kLanes)
    for (int64_t piece = 0; piece < k; piece += kPiece) {
      const int64_t wide = std::min(kPiece, k - piece);
      for (int64_t r = 0; r < kLanes; r++)
        for (int64_t j = 0; j < wide; j += 2 * kLanes) {
          const W* row = w + (i + r) * ldw + piece + j;
          _mm_prefetch(row + kAhead, _MM_HINT_T0);
          _mm_prefetch(row + kAhead + kLanes, _MM_HINT_T0);
          _mm512_store_si512(words + (r * kPiece + j) / 2, both(row, j + kLanes < wide ? row + kLanes : row));
        }
      transpose(words, kPiece / 2, to + piece / 2 * ldo + i, ldo, kLanes, wide / 2);
    }
}

// B of a product with W, from `n` columns of W (k x n).
template <typename W>
void pack(const W* w, int64_t ldw, int64_t n, int64_t k, word* to, int64_t ldo) {
  for (int64_t i = 0; i < k; i += 2)
    for (int64_t j = 0; j < n; j += kLanes) {
      const W *low = w + i * ldw + j, *high = low + ldw;
      _mm_prefetch(low + 8 * ldw, _MM_HINT_T0);
      _mm_prefetch(high + 8 * ldw, _MM_HINT_T0);
      _mm512_storeu_si512(to + i / 2 * ldo + j, paired(both(low, high)));
    }
}

}  // namespace lmopt
