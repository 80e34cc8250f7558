// Causal attention with its probabilities kept, forward and backward, in bfloat16 and float32: blocks of queries
// against the keys up to their end, as causal.py has it and in its order, so that either may go back where the other
// went forward.
//
// Letters: B sequences of T tokens, H heads, K key heads that H / K of them share, C their width; T and C are multiples
// of 16. A key head of a sequence, with the heads that share it, is one thread's: the bits do not depend on how many
// threads there are.

#include <omp.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "products.h"

using namespace lmopt;

namespace {

constexpr int64_t kBlock = 128;                  // queries, as in causal.py
constexpr size_t kCodeBytes = size_t(32) << 20;  // of address space that one thread's products take, at most

struct Shape {
  int64_t B, H, K, T, C;
  int threads;

  float scale() const { return 1 / std::sqrt(static_cast<float>(C)); }
};

// Some queries of one head, which see the keys before `end`.
struct Block {
  int64_t sequence, head, start, rows, end;
  int64_t kept = 0;  // where their probabilities are, rows x end

  Block(const Shape& shape, int64_t b, int64_t h, int64_t first)
      : sequence(b), head(h), start(first), rows(std::min(kBlock, shape.T - first)), end(first + rows) {
    for (int64_t s = 0; s < start; s += kBlock) kept += shape.B * shape.H * kBlock * (s + kBlock);
    kept += (b * shape.H + h) * rows * end;
  }
  int64_t apart(const Shape& shape) const { return ((sequence * shape.H + head) * shape.T + start) * shape.C; }
  int64_t together(const Shape& shape) const { return ((sequence * shape.T + start) * shape.H + head) * shape.C; }
};

// p = softmax of scale x scores, of which the first `seen` count; the scores are used up, and may be where p goes.
template <typename Number>
void softmax(int64_t seen, int64_t end, float scale, float* scores, Number* p) {
  const Vec share(exponentials(seen, scale, scores));
  for (int64_t j = 0; j < seen; j += kLanes) store(p + j, load(scores + j) * share);
  std::fill(p + seen, p + end, Number(0));
}

// The gradient of the scores from that of p; it may be where that is.
template <typename Number>
void softmax_backward(int64_t seen, int64_t end, float scale, const Number* p, const float* grad, Number* to) {
  Vec along(0);
  for (int64_t j = 0; j < filled_up(seen, kLanes); j += kLanes)  // p is 0 behind `seen`
    along = at::vec::fmadd(load(p + j), load(grad + j), along);
  const Vec less(_mm512_reduce_add_ps(along));
  for (int64_t j = 0; j < filled_up(seen, kLanes); j += kLanes)
    store(to + j, load(p + j) * (load(grad + j) - less) * Vec(scale));
  std::fill(to + seen, to + end, Number(0));
}

// [column][row] of `rows` rows of `columns` numbers.
const half* transposed(Room& own, const half* from, int64_t rows, int64_t columns) {
  auto* words = own.take<word>(rows / 2 * columns);
  auto* to = own.take<word>(rows / 2 * columns);
  pack(from, columns, columns, rows, words, columns);
  transpose(words, columns, to, rows / 2, rows / 2, columns);
  return reinterpret_cast<const half*>(to);
}
const float* transposed(Room& own, const float* from, int64_t rows, int64_t columns) {
  auto* to = own.take<float>(rows * columns);
  transpose(from, columns, to, rows, rows, columns);
  return to;
}

// float32 rows, `stride` numbers apart.
template <typename Number>
void store_rows(const float* from, int64_t rows, int64_t C, Number* to, int64_t stride) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < C; c += kLanes) store(to + r * stride + c, load(from + r * C + c));
}

// work(memory, i, first head, end of heads) for each key head i of all sequences, in `bytes` of memory that its thread
// uses again for its next one.
template <typename Work>
void each_key_head(const Shape& shape, int64_t bytes, const Work& work) {
  thread_local std::set<std::tuple<int64_t, int64_t, int64_t, int>> met;
  const std::tuple products{shape.T, shape.C, shape.H, shape.threads};
  if (!met.count(products)) refuse_without_room(shape.threads * kCodeBytes);
  met.insert(products);
  Scratch scratch(shape.threads * bytes);
  auto* all = scratch.take<char>(shape.threads * bytes);
  const int64_t shared = shape.H / shape.K;
#pragma omp parallel num_threads(shape.threads)
  {
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < shape.B * shape.K; i++)
      work(Room(all + omp_get_thread_num() * bytes), i, i % shape.K * shared, (i % shape.K + 1) * shared);
    at::native::cpublas::brgemm_release();
  }
}

// The second operand of a product, and how many numbers its rows are apart.
template <typename Word>
struct Second {
  const Word* numbers;
  int64_t apart;
};

// W^T, from `n` rows of W (n x k).
Second<word> turned(Room& own, const half* w, int64_t ldw, int64_t n, int64_t k) {
  auto* to = own.take<word>(k / 2 * n);
  pack_transposed(w, ldw, n, k, to, n);
  return {to, n};
}
Second<float> turned(Room& own, const float* w, int64_t ldw, int64_t n, int64_t k) {
  auto* to = own.take<float>(k * n);
  transpose(w, ldw, to, n, n, k);
  return {to, n};
}

// W, from `n` columns of it (k x n).
Second<word> upright(Room& own, const half* w, int64_t ldw, int64_t n, int64_t k) {
  auto* to = own.take<word>(k / 2 * n);
  pack(w, ldw, n, k, to, n);
  return {to, n};
}
Second<float> upright(Room&, const float* w, int64_t ldw, int64_t, int64_t) { return {w, ldw}; }

template <typename Number, typename Word>
void product(int64_t m, int64_t n, int64_t k, const Number* a, int64_t lda, Second<Word> b, float* c,
             bool add = false) {
  lmopt::product(m, n, k, a, lda, b.numbers, b.apart, c, add);
}

// Where scores in float32 become numbers of the operands' kind: float32 ones stay in their place.
half* room_for(Room& own, int64_t count, float*, half) { return own.take<half>(count); }
float* room_for(Room&, int64_t, float* scores, float) { return scores; }

// q (B x H x T x C), k and v (B x K x T x C) to out (B x T x H x C); `kept` is null where nothing is kept.
template <typename Number>
void forward(const Shape& shape, const Number* q, const Number* k, const Number* v, Number* out, Number* kept) {
  const int64_t H = shape.H, K = shape.K, T = shape.T, C = shape.C;
  const int64_t bytes = filled_up(4 * (T * C + kBlock * (T + C)) + 2 * kBlock * T, 64) + 5 * 64;
  each_key_head(shape, bytes, [&](Room own, int64_t i, int64_t first_head, int64_t end_of_heads) {
    const auto keys = turned(own, k + i * T * C, C, T, C);
    const auto values = upright(own, v + i * T * C, C, C, T);
    auto* scores = own.take<float>(kBlock * T);
    auto* result = own.take<float>(kBlock * C);
    Number* room = room_for(own, kBlock * T, scores, Number());
    for (int64_t start = 0; start < T; start += kBlock)
      for (int64_t h = first_head; h < end_of_heads; h++) {
        const Block block(shape, i / K, h, start);
        Number* p = kept == nullptr ? room : kept + block.kept;
        product(block.rows, block.end, C, q + block.apart(shape), C, keys, scores);
        for (int64_t r = 0; r < block.rows; r++)
          softmax(start + r + 1, block.end, shape.scale(), scores + r * block.end, p + r * block.end);
        product(block.rows, C, block.end, p, block.end, values, result);
        store_rows(result, block.rows, C, out + block.together(shape), H * C);
      }
  });
}

template <typename Number>
void backward(const Shape& shape, const Number* grad, const Number* q, const Number* k, const Number* v,
              const Number* kept, Number* grad_q, Number* grad_k, Number* grad_v) {
  const int64_t H = shape.H, K = shape.K, T = shape.T, C = shape.C;
  const int64_t bytes = filled_up(4 * (3 * T * C + kBlock * (3 * T + 2 * C)), 64) + 12 * 64;
  each_key_head(shape, bytes, [&](Room own, int64_t i, int64_t first_head, int64_t end_of_heads) {
    const auto values = turned(own, v + i * T * C, C, T, C);
    const auto keys = upright(own, k + i * T * C, C, C, T);
    auto* sum_k = own.take<float>(T * C);
    auto* sum_v = own.take<float>(T * C);
    auto* grad_p = own.take<float>(kBlock * T);
    auto* result = own.take<float>(kBlock * C);
    Number* grad_scores = room_for(own, kBlock * T, grad_p, Number());
    std::fill_n(sum_k, T * C, 0.f);
    std::fill_n(sum_v, T * C, 0.f);
    for (int64_t start = 0; start < T; start += kBlock)
      for (int64_t h = first_head; h < end_of_heads; h++) {
        const Block block(shape, i / K, h, start);
        const int64_t rows = block.rows, end = block.end;
        const Number *block_grad = grad + block.together(shape), *p = kept + block.kept;
        product(rows, end, C, block_grad, H * C, values, grad_p);
        for (int64_t r = 0; r < rows; r++)
          softmax_backward(start + r + 1, end, shape.scale(), p + r * end, grad_p + r * end, grad_scores + r * end);
        product(rows, C, end, grad_scores, end, keys, result);
        store_rows(result, rows, C, grad_q + block.apart(shape), C);
        Room block_own = own;
        const Number* p_T = transposed(block_own, p, rows, end);
        product(end, C, rows, p_T, rows, upright(block_own, block_grad, H * C, C, rows), sum_v, true);
        block_own = own;
        const Number* scores_T = transposed(block_own, grad_scores, rows, end);
        product(end, C, rows, scores_T, rows, upright(block_own, q + block.apart(shape), C, C, rows), sum_k, true);
      }
    store_rows(sum_k, T, C, grad_k + i * T * C, C);
    store_rows(sum_v, T, C, grad_v + i * T * C, C);
  });
}

}  // namespace

extern "C" {

bool lmopt_attention_forward(int64_t B, int64_t H, int64_t K, int64_t T, int64_t C, int threads, const half* q,
                             const half* k, const half* v, half* out, half* kept) {
  const Shape shape{B, H, K, T, C, threads};
  return enough_memory([&] { forward(shape, q, k, v, out, kept); });
}

bool lmopt_attention_forward_float(int64_t B, int64_t H, int64_t K, int64_t T, int64_t C, int threads, const float* q,
                                   const float* k, const float* v, float* out, float* kept) {
  const Shape shape{B, H, K, T, C, threads};
  return enough_memory([&] { forward(shape, q, k, v, out, kept); });
}

bool lmopt_attention_backward(int64_t B, int64_t H, int64_t K, int64_t T, int64_t C, int threads, const half* grad,
                              const half* q, const half* k, const half* v, const half* kept, half* grad_q, half* grad_k,
                              half* grad_v) {
  const Shape shape{B, H, K, T, C, threads};
  return enough_memory([&] { backward(shape, grad, q, k, v, kept, grad_q, grad_k, grad_v); });
}

bool lmopt_attention_backward_float(int64_t B, int64_t H, int64_t K, int64_t T, int64_t C, int threads,
                                    const float* grad, const float* q, const float* k, const float* v,
                                    const float* kept, float* grad_q, float* grad_k, float* grad_v) {
  const Shape shape{B, H, K, T, C, threads};
  return enough_memory([&] { backward(shape, grad, q, k, v, kept, grad_q, grad_k, grad_v); });
}

}  // extern "C"
