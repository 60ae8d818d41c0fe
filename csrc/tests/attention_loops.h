// Attention in plain loops over double, one number after another, and cases with every option: what the kernels of every
// device are held against.
#pragma once
#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "../attention/attention.h"
#include "../common/philox.h"
#include "check.h"

namespace tunecore::tests {

using Doubles = std::vector<double>;

struct Gradients {
  Doubles out, lse, dq, dk, dv, dbias;
};

struct AttentionCase {
  std::vector<int32_t> cu_q{0}, cu_k{0}, prefix, buckets;
  std::vector<int64_t> row_ids;
  std::vector<float> slopes, table;
  int64_t heads = 4, kv_heads = 2, width = 16;
  AttentionParams p{};

  explicit AttentionCase(const std::vector<std::pair<int, int>>& lengths) {
    for (auto [q, k] : lengths) {
      cu_q.push_back(cu_q.back() + q);
      cu_k.push_back(cu_k.back() + k);
      p.longest_q = std::max<int64_t>(p.longest_q, q);
      p.longest_k = std::max<int64_t>(p.longest_k, k);
      row_ids.push_back(int64_t(row_ids.size()) * 1000003 + 5);
    }
    p.scale = 0.3f;
  }
  AttentionCase& with(const std::function<void(AttentionCase&)>& change) {
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

inline void check_close(const Doubles& got, const Doubles& wanted, double tolerance) {
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

// Lengths of none to some tiles of a kernel, queries fewer and more than keys; each option alone and with others.
inline std::vector<AttentionCase> all_options() {
  const std::vector<std::pair<int, int>> lengths = {{3, 3}, {1, 1}, {0, 0}, {50, 50}, {2, 21}, {9, 4}, {70, 131}};
  const auto dropout = [](AttentionCase& c) {
    c.p.drop_below = 13107, c.p.rng_key = 0x123456789ABCDEFull, c.p.site = 3;
  };
  std::vector<AttentionCase> all;
  const auto add = [&](const std::function<void(AttentionCase&)>& change) {
    all.push_back(AttentionCase(lengths).with(change));
  };
  add([](AttentionCase&) {});
  add([](AttentionCase& c) { c.p.causal = true, c.width = 48; });
  add([](AttentionCase& c) { c.p.causal = true, c.prefix = {1, 0, 0, 20, 21, 2, 30}; });
  add([](AttentionCase& c) { c.p.window = 5, c.kv_heads = 4; });
  add([&](AttentionCase& c) { c.p.causal = true, c.p.window = 33, dropout(c); });
  add([&](AttentionCase& c) { c.slopes = {0.5f, 0.25f, 0.125f, 1.0f}, dropout(c); });
  add([&](AttentionCase& c) { c.buckets = {0, 1, 1, 2, 3, 3, 4}, c.table = Numbers(5).vector(20), dropout(c); });
  return all;
}

}  // namespace tunecore::tests
