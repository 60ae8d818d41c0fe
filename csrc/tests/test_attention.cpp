// The attention kernels of every variant this machine runs, and of emulated bf16 pairs, against plain loops in double.
#include <functional>

#include "../attention/attention_cpu.h"
#include "../common/cpu/capability.h"
#include "attention_loops.h"
#include "bf16.h"

namespace tunecore {
extern const AttentionKernels attention_kernels_emulated;
}

using namespace tunecore;
using tunecore::tests::all_options;
using tunecore::tests::check_close;
using tunecore::tests::Doubles;
using tunecore::tests::from_bf16;
using tunecore::tests::Gradients;
using tunecore::tests::Numbers;
using tunecore::tests::to_bf16;

namespace {

using Case = tests::AttentionCase;

template <class S>
S stored(float x) {
  if constexpr (sizeof(S) == 2) return to_bf16(x);
  return S(x);
}
template <class S>
double number(S x) {
  if constexpr (sizeof(S) == 2) return from_bf16(uint16_t(x));
  return double(x);
}

// Results of the kernels, as numbers; buffers have exactly the size that is theirs, so that a sanitizer sees the edge.
template <class S>
struct Run {
  std::vector<S> q, k, v, dout, out, dq, dk, dv;
  std::vector<float> lse, dbias;

  Run(Case& c, int threads, const AttentionKernels& kernels) {
    const size_t queries = size_t(c.tokens() * c.heads * c.width), keys = size_t(c.key_tokens() * c.kv_heads * c.width);
    Numbers numbers(7);
    for (auto* x : {&q, &dout})
      for (float n : numbers.vector(queries, 2.0f)) x->push_back(stored<S>(n));
    for (auto* x : {&k, &v})
      for (float n : numbers.vector(keys, 2.0f)) x->push_back(stored<S>(n));
    out.resize(queries), dq.resize(queries), dk.resize(keys), dv.resize(keys);
    lse.resize(size_t(c.heads * c.tokens())), dbias.resize(c.table.size());
    AttentionParams p = c.params();
    const int64_t qs = c.heads * c.width, ks = c.kv_heads * c.width;
    p.q_THD = {q.data(), qs, c.width}, p.dout_THD = {dout.data(), qs, c.width};
    p.k_SKD = {k.data(), ks, c.width}, p.v_SKD = {v.data(), ks, c.width};
    p.out_THD = out.data(), p.lse_HT = lse.data();
    p.dq_THD = dq.data(), p.dk_SKD = dk.data(), p.dv_SKD = dv.data();
    const AttentionType type = sizeof(S) == 2 ? AttentionType::bf16 : AttentionType::f32;
    attention_forward_cpu(p, type, threads, kernels);
    attention_backward_cpu(p, type, dbias.empty() ? nullptr : dbias.data(), threads, kernels);
  }
  bool same_as(const Run& o) const {
    return out == o.out && dq == o.dq && dk == o.dk && dv == o.dv && lse == o.lse && dbias == o.dbias;
  }
};

template <class T>
Doubles numbers_of(const std::vector<T>& x) {
  Doubles all;
  for (T n : x) all.push_back(number(n));
  return all;
}

template <class S>
void compare(Case& c, const AttentionKernels& kernels) {
  const Run<S> run(c, 2, kernels);
  const double tolerance = sizeof(S) == 2 ? 1.5e-2 : 2e-6;
  const Gradients wanted =
      c.exact(numbers_of(run.q), numbers_of(run.k), numbers_of(run.v), numbers_of(run.dout));
  check_close(numbers_of(run.out), wanted.out, tolerance);
  check_close(numbers_of(run.lse), wanted.lse, 1e-6);
  check_close(numbers_of(run.dq), wanted.dq, tolerance);
  check_close(numbers_of(run.dk), wanted.dk, tolerance);
  check_close(numbers_of(run.dv), wanted.dv, tolerance);
  check_close(numbers_of(run.dbias), wanted.dbias, 2 * tolerance);
}

void for_each_variant(const std::function<void(const AttentionKernels&)>& body) {
  for (Capability c : kCapabilities) {
    if (c > detected_capability()) continue;
    set_capability(name_of(c));
    body(attention_kernels());
  }
  set_capability("");
  body(attention_kernels_emulated);
}

}  // namespace

TEST(attention_matches_double) {
  for (Case& c : all_options())
    for_each_variant([&](const AttentionKernels& kernels) {
      compare<float>(c, kernels);
      compare<uint16_t>(c, kernels);
    });
}

// Tile registers take widths that are multiples of 32.
TEST(attention_of_wide_heads_matches_double) {
  for (Case& c : all_options()) {
    c.width = 32;
    for_each_variant([&](const AttentionKernels& kernels) { compare<uint16_t>(c, kernels); });
  }
}

TEST(attention_does_not_depend_on_threads) {
  std::vector<Case> all = all_options();
  Case& c = all.back();
  c.width = 32;
  for_each_variant([&](const AttentionKernels& kernels) {
    const Run<float> one(c, 1, kernels);
    const Run<uint16_t> half(c, 1, kernels);
    for (int threads : {2, 3, 8}) {
      CHECK(one.same_as(Run<float>(c, threads, kernels)));
      CHECK(half.same_as(Run<uint16_t>(c, threads, kernels)));
    }
  });
}

TEST(attention_of_nothing) {
  Case c({});
  Case empty({{0, 0}, {0, 5}, {3, 0}});
  for_each_variant([&](const AttentionKernels& kernels) {
    Run<float>(c, 2, kernels);
    const Run<float> run(empty, 2, kernels);
    for (float x : run.out) CHECK(x == 0.0f);
    for (float x : run.dk) CHECK(x == 0.0f);
    for (float x : run.lse) CHECK(x == -INFINITY);
  });
}

TEST(attention_keeps_nan_visible) {
  for_each_variant([](const AttentionKernels& kernels) {
    Case c({{20, 20}});
    AttentionParams p = c.params();
    std::vector<float> x(size_t(20 * c.heads * c.width), 1.0f), out(x.size()), lse(size_t(20 * c.heads));
    x[size_t(17 * c.heads * c.width)] = NAN;
    p.q_THD = p.k_SKD = p.v_SKD = {x.data(), c.heads * c.width, c.width};
    p.kv_heads = c.heads;
    p.out_THD = out.data(), p.lse_HT = lse.data();
    attention_forward_cpu(p, AttentionType::f32, 1, kernels);
    for (int64_t t = 0; t < 20; ++t) CHECK(std::isnan(out[size_t(t * c.heads * c.width)]));
  });
}

TEST(attention_of_many_short_sequences) {
  std::vector<std::pair<int, int>> lengths;
  for (int n = 1; n < 60; ++n) lengths.emplace_back(n, n);
  for (int64_t width : {16, 32, 64, 112}) {
    Case c(lengths);
    c.heads = c.kv_heads = 1, c.width = width;
    c.p.drop_below = 6554;
    for_each_variant([&](const AttentionKernels& kernels) { compare<uint16_t>(c, kernels); });
  }
}
