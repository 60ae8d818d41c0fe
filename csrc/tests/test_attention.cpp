// The attention kernels of every variant this machine runs, and of emulated bf16 pairs, against plain loops in double.
#include <cstring>
#include <functional>
#include <string>

#include "../attention/attention_cpu.h"
#include "../common/cpu/capability.h"
#include "../common/philox.h"
#include "bf16.h"
#include "check.h"

namespace tunecore {
extern const AttentionKernels attention_kernels_emulated;
}

using namespace tunecore;
using tunecore::tests::from_bf16;
using tunecore::tests::Numbers;
using tunecore::tests::to_bf16;

namespace {

using Doubles = std::vector<double>;

struct Gradients {
  Doubles out, lse, dq, dk, dv, dbias;
};

struct Case {
  std::vector<int32_t> cu_q{0}, cu_k{0}, prefix, buckets;
  std::vector<int64_t> row_ids;
  std::vector<float> slopes, table;
  int64_t heads = 4, kv_heads = 2, width = 16;
  AttentionParams p{};

  Case(std::vector<std::pair<int, int>> lengths) {
    for (auto [q, k] : lengths) {
      cu_q.push_back(cu_q.back() + q);
      cu_k.push_back(cu_k.back() + k);
      p.longest_q = std::max<int64_t>(p.longest_q, q);
      p.longest_k = std::max<int64_t>(p.longest_k, k);
      row_ids.push_back(int64_t(row_ids.size()) * 1000003 + 5);
    }
    p.scale = 0.3f;
  }
  Case& with(const std::function<void(Case&)>& change) {
    change(*this);
    return *this;
  }
  int64_t tokens() const { return cu_q.back(); }
  int64_t key_tokens() const { return cu_k.back(); }

  AttentionParams params() {
    p.tokens = tokens(), p.heads = heads, p.kv_heads = kv_heads, p.width = width;
    p.cu_seqlens_q = cu_q.data(), p.cu_seqlens_k = cu_k.data();
    p.sequences = int64_t(cu_q.size()) - 1;
    p.prefix_lens = prefix.empty() ? nullptr : prefix.data();
    p.alibi_slopes = slopes.empty() ? nullptr : slopes.data();
    p.relative_bias_BH = table.empty() ? nullptr : table.data();
    p.buckets = buckets.empty() ? nullptr : buckets.data();
    p.reach = int64_t(buckets.size()) / 2;
    p.bucket_count = table.empty() ? 0 : int64_t(table.size()) / heads;
    p.row_ids = row_ids.data();
    return p;
  }

  bool kept(int64_t b, int64_t h, int64_t i, int64_t j) const {
    const Philox4 r = philox4x32_10(philox_site_key(p.rng_key, p.site), uint32_t(p.rng_key >> 32), uint32_t(j / 8),
                                    uint32_t(i), uint32_t(h), uint32_t(row_ids[size_t(b)]));
    return (r.w[j % 8 / 2] >> (16 * (j % 2)) & 0xFFFF) >= p.drop_below;
  }
  bool seen(int64_t b, int64_t d, int64_t j) const {
    if ((p.causal || !prefix.empty()) && d > 0 && (prefix.empty() || j >= prefix[size_t(b)])) return false;
    return p.window == 0 || std::llabs(d) < p.window;
  }

  // One sequence and head: scores, weights and gradients in double, one number after another.
  void exact_head(int64_t b, int64_t h, const Doubles& q, const Doubles& k, const Doubles& v, const Doubles& dout,
                  Gradients& g) const {
    const int64_t D = width, K = kv_heads, kv = h / (heads / kv_heads), q0 = cu_q[b], k0 = cu_k[b];
    const int64_t queries = cu_q[b + 1] - q0, keys = cu_k[b + 1] - k0;
    const double grown = 65536.0 / (65536.0 - p.drop_below);
    for (int64_t i = 0; i < queries; ++i) {
      const size_t qi = size_t(((q0 + i) * heads + h) * D);
      Doubles score(size_t(keys), -INFINITY), dweight(size_t(keys), 0);
      double top = -INFINITY, sum = 0, mean = 0;
      for (int64_t j = 0; j < keys; ++j) {
        const int64_t d = j - (i + keys - queries);
        if (!seen(b, d, j)) continue;
        double s = 0;
        for (int64_t c = 0; c < D; ++c) s += p.scale * q[qi + c] * k[size_t(((k0 + j) * K + kv) * D + c)];
        if (!slopes.empty()) s -= slopes[h] * std::llabs(d);
        if (!table.empty()) s += table[size_t(bucket(d) * heads + h)];
        score[j] = s, top = std::fmax(top, s);
      }
      for (double s : score) sum += s == -INFINITY ? 0 : std::exp(s - top);
      g.lse[size_t(h * tokens() + q0 + i)] = sum == 0 ? -INFINITY : top + std::log(sum);
      for (int64_t j = 0; j < keys; ++j) {
        if (score[j] == -INFINITY) continue;
        const double w = std::exp(score[j] - top) / sum, f = p.drop_below ? kept(b, h, i, j) * grown : 1;
        for (int64_t c = 0; c < D; ++c) {
          const size_t at = size_t(((k0 + j) * K + kv) * D + c);
          g.out[qi + c] += w * f * v[at];
          g.dv[at] += w * f * dout[qi + c];
          dweight[j] += f * dout[qi + c] * v[at];
        }
        mean += w * dweight[j];
      }
      for (int64_t j = 0; j < keys; ++j) {
        if (score[j] == -INFINITY) continue;
        const double ds = std::exp(score[j] - top) / sum * (dweight[j] - mean);
        for (int64_t c = 0; c < D; ++c) {
          const size_t at = size_t(((k0 + j) * K + kv) * D + c);
          g.dq[qi + c] += p.scale * ds * k[at];
          g.dk[at] += p.scale * ds * q[qi + c];
        }
        if (!table.empty()) g.dbias[size_t(bucket(j - (i + keys - queries)) * heads + h)] += ds;
      }
    }
  }
  int64_t bucket(int64_t d) const {
    const int64_t reach = int64_t(buckets.size()) / 2;
    return buckets[size_t(std::max(-reach, std::min(d, reach)) + reach)];
  }
  Gradients exact(const Doubles& q, const Doubles& k, const Doubles& v, const Doubles& dout) const {
    Gradients g{Doubles(q.size()), Doubles(size_t(heads * tokens())), Doubles(q.size()),
                Doubles(k.size()), Doubles(k.size()), Doubles(table.size())};
    for (int64_t b = 0; b + 1 < int64_t(cu_q.size()); ++b)
      for (int64_t h = 0; h < heads; ++h) exact_head(b, h, q, k, v, dout, g);
    return g;
  }
};

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

void check_close(const Doubles& got, const Doubles& wanted, double tolerance) {
  double error = 0, norm = 0;
  for (size_t n = 0; n < got.size(); ++n) {
    if (std::isinf(wanted[n])) {
      CHECK(got[n] == wanted[n]);
      continue;
    }
    error += (got[n] - wanted[n]) * (got[n] - wanted[n]), norm += wanted[n] * wanted[n];
  }
  CHECK_NEAR(std::sqrt(error), 0.0, tolerance * std::sqrt(norm) + 1e-30);
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
  for (Capability c : {Capability::baseline, Capability::avx2, Capability::avx512, Capability::avx512_bf16}) {
    if (c > detected_capability()) continue;
    set_capability(name_of(c));
    body(attention_kernels());
  }
  set_capability("");
  body(attention_kernels_emulated);
}

std::vector<Case> all_options() {
  const std::vector<std::pair<int, int>> lengths = {{3, 3}, {1, 1}, {0, 0}, {50, 50}, {2, 21}, {9, 4}, {70, 131}};
  const auto dropout = [](Case& c) { c.p.drop_below = 13107, c.p.rng_key = 0x123456789ABCDEFull, c.p.site = 3; };
  std::vector<Case> all;
  const auto add = [&](const std::function<void(Case&)>& change) { all.push_back(Case(lengths).with(change)); };
  add([](Case&) {});
  add([](Case& c) { c.p.causal = true, c.width = 48; });
  add([](Case& c) { c.p.causal = true, c.prefix = {1, 0, 0, 20, 21, 2, 30}; });
  add([](Case& c) { c.p.window = 5, c.kv_heads = 4; });
  add([&](Case& c) { c.p.causal = true, c.p.window = 33, dropout(c); });
  add([&](Case& c) { c.slopes = {0.5f, 0.25f, 0.125f, 1.0f}, dropout(c); });
  add([&](Case& c) { c.buckets = {0, 1, 1, 2, 3, 3, 4}, c.table = Numbers(5).vector(20), dropout(c); });
  return all;
}

}  // namespace

TEST(attention_matches_double) {
  for (Case& c : all_options())
    for_each_variant([&](const AttentionKernels& kernels) {
      compare<float>(c, kernels);
      compare<uint16_t>(c, kernels);
    });
}

TEST(attention_does_not_depend_on_threads) {
  std::vector<Case> all = all_options();
  Case& c = all.back();
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
    c.heads = 3, c.kv_heads = 3, c.width = width;
    c.p.drop_below = 6554;
    for_each_variant([&](const AttentionKernels& kernels) { compare<uint16_t>(c, kernels); });
  }
}
