// Causal attention in bfloat16 with its probabilities kept, forward and backward: blocks of queries against the keys up
// to their end, as causal.py has it and in its order, so that either may go back where the other went forward. The
// forward pass by itself in float32, too.
//
// Letters: B sequences of T tokens, H heads, K key heads that H / K of them share, C their width; T and C are multiples
// of 16. A key head of a sequence, with the heads that share it, is one thread's: the bits do not depend on how many
// threads there are.

#include <omp.h>

#include <algorithm>
#include <set>
#include <tuple>
#include <type_traits>

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

// The gradient of the scores from that of p.
void softmax_backward(int64_t seen, int64_t end, float scale, const half* p, const float* grad, half* to) {
  Vec along(0);
  for (int64_t j = 0; j < filled_up(seen, kLanes); j += kLanes)  // p is 0 behind `seen`
    along = at::vec::fmadd(load(p + j), load(grad + j), along);
  const Vec less(_mm512_reduce_add_ps(along));
  for (int64_t j = 0; j < filled_up(seen, kLanes); j += kLanes)
    store(to + j, load(p + j) * (load(grad + j) - less) * Vec(scale));
  std::fill(to + seen, to + end, half(0));
}

// to[column][row], where `from` has `rows` rows of `columns` numbers; `words` is room.
void transposed(const half* from, int64_t rows, int64_t columns, word* words, half* to) {
  pack(from, columns, columns, rows, words, columns);
  transpose(words, columns, reinterpret_cast<word*>(to), rows / 2, rows / 2, columns);
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

// The keys and values of a head as the second operands of products: keys transposed.
struct HalfOperands {
  const word *k_T, *v;

  HalfOperands(Room& own, const Shape& shape, const half* keys, const half* values) {
    const int64_t T = shape.T, C = shape.C;
    auto* k_words = own.take<word>(C / 2 * T);
    auto* v_words = own.take<word>(T / 2 * C);
    pack_transposed(keys, C, T, C, k_words, T);
    pack(values, C, C, T, v_words, C);
    k_T = k_words, v = v_words;
  }
};
struct FloatOperands {
  const float *k_T, *v;

  FloatOperands(Room& own, const Shape& shape, const float* keys, const float* values) {
    auto* turned = own.take<float>(shape.C * shape.T);
    transpose(keys, shape.C, turned, shape.T, shape.T, shape.C);
    k_T = turned, v = values;
  }
};

// q (B x H x T x C), k and v (B x K x T x C) to out (B x T x H x C); `kept` is null where nothing is kept.
template <typename Number>
void forward(const Shape& shape, const Number* q, const Number* k, const Number* v, Number* out, Number* kept) {
  constexpr bool halves = std::is_same_v<Number, half>;
  const int64_t H = shape.H, K = shape.K, T = shape.T, C = shape.C;
  const int64_t bytes = filled_up(4 * (T * C + kBlock * (T + C)) + 2 * kBlock * T, 64) + 5 * 64;
  each_key_head(shape, bytes, [&](Room own, int64_t i, int64_t first_head, int64_t end_of_heads) {
    const std::conditional_t<halves, HalfOperands, FloatOperands> operands(own, shape, k + i * T * C, v + i * T * C);
    auto* scores = own.take<float>(kBlock * T);
    auto* result = own.take<float>(kBlock * C);
    Number* room;
    if constexpr (halves)
      room = own.take<half>(kBlock * T);
    else
      room = scores;
    for (int64_t start = 0; start < T; start += kBlock)
      for (int64_t h = first_head; h < end_of_heads; h++) {
        const Block block(shape, i / K, h, start);
        Number* p = kept == nullptr ? room : kept + block.kept;
        product(block.rows, block.end, C, q + block.apart(shape), C, operands.k_T, T, scores);
        for (int64_t r = 0; r < block.rows; r++)
          softmax(start + r + 1, block.end, shape.scale(), scores + r * block.end, p + r * block.end);
        product(block.rows, C, block.end, p, block.end, operands.v, C, result);
        store_rows(result, block.rows, C, out + block.together(shape), H * C);
      }
  });
}

void backward(const Shape& shape, const half* grad, const half* q, const half* k, const half* v, const half* kept,
              half* grad_q, half* grad_k, half* grad_v) {
  const int64_t H = shape.H, K = shape.K, T = shape.T, C = shape.C;
  const int64_t bytes = filled_up(4 * (3 * T * C + kBlock * (3 * T / 2 + 2 * C)) + 6 * kBlock * T, 64) + 12 * 64;
  each_key_head(shape, bytes, [&](Room own, int64_t i, int64_t first_head, int64_t end_of_heads) {
    auto* v_T = own.take<word>(C / 2 * T);
    auto* k_T = own.take<word>(T / 2 * C);
    auto* sum_k = own.take<float>(T * C);
    auto* sum_v = own.take<float>(T * C);
    auto* grad_p = own.take<float>(kBlock * T);
    auto* result = own.take<float>(kBlock * C);
    auto* grad_rows = own.take<word>(kBlock / 2 * C);
    auto* q_rows = own.take<word>(kBlock / 2 * C);
    auto* words = own.take<word>(kBlock / 2 * T);
    auto* grad_scores = own.take<half>(kBlock * T);
    auto* p_T = own.take<half>(T * kBlock);
    auto* grad_scores_T = own.take<half>(T * kBlock);
    pack_transposed(v + i * T * C, C, T, C, v_T, T);
    pack(k + i * T * C, C, C, T, k_T, C);
    std::fill_n(sum_k, T * C, 0.f);
    std::fill_n(sum_v, T * C, 0.f);
    for (int64_t start = 0; start < T; start += kBlock)
      for (int64_t h = first_head; h < end_of_heads; h++) {
        const Block block(shape, i / K, h, start);
        const int64_t rows = block.rows, end = block.end;
        const half *block_grad = grad + block.together(shape), *p = kept + block.kept;
        product(rows, end, C, block_grad, H * C, v_T, T, grad_p);
        for (int64_t r = 0; r < rows; r++)
          softmax_backward(start + r + 1, end, shape.scale(), p + r * end, grad_p + r * end, grad_scores + r * end);
        product(rows, C, end, grad_scores, end, k_T, C, result);
        store_rows(result, rows, C, grad_q + block.apart(shape), C);
        pack(block_grad, H * C, C, rows, grad_rows, C);
        pack(q + block.apart(shape), C, C, rows, q_rows, C);
        transposed(p, rows, end, words, p_T);
        transposed(grad_scores, rows, end, words, grad_scores_T);
        product(end, C, rows, p_T, rows, grad_rows, C, sum_v, true);
        product(end, C, rows, grad_scores_T, rows, q_rows, C, sum_k, true);
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

}  // extern "C"
