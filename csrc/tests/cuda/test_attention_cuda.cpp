// Attention and its gradients against loops in double precision: lengths of none to some tiles, every option.
#include "../../attention/attention_cuda.h"
#include "../attention_loops.h"
#include "numeric.h"

using namespace tunecore;
using namespace tunecore::cuda;
using tests::Buffer;
using tests::all_options;
using tests::AttentionCase;
using tests::check_close;
using tests::Doubles;
using tests::Gradients;

namespace {

using Lengths = std::vector<std::pair<int, int>>;
const Lengths kRagged = {{3, 3}, {1, 1}, {0, 0}, {2, 21}, {9, 4}, {70, 131}};

template <class T>
Buffer<T> input(const std::string& name, const std::vector<T>& values) {
  return Buffer<T>::input(name, values);
}

template <class Values>
Doubles numbers_of(const Values& x) {
  Doubles all;
  for (size_t n = 0; n < x.size(); ++n) all.push_back(tests::number(x[n]));
  return all;
}

// Rows [tokens, heads, D] that lie in memory with other things between them, as those of a product for q, k and v do.
template <class T>
struct Rows {
  int64_t heads, width;
  std::vector<T> values;
  Buffer<T> buffer;

  Rows(const char* name, tests::Numbers& numbers, int64_t tokens, int64_t of_heads, int64_t of_width)
      : heads(of_heads), width(of_width), values(tests::rounded<T>(numbers.vector(size_t(tokens * heads * width), 2.0f))),
        buffer(input(name, spread())) {}
  int64_t stride() const { return heads * width + 8; }
  std::vector<T> spread() const {
    const size_t row = size_t(heads * width);
    std::vector<T> all;
    for (size_t at = 0; at < values.size(); at += row) {
      all.insert(all.end(), values.begin() + at, values.begin() + at + row);
      all.resize(all.size() + 8, cuda::from_float<T>(NAN));
    }
    return all;
  }
  AttentionRows rows() const { return {buffer.data(), stride(), width}; }
};

template <class T>
struct Problem {
  AttentionCase& of;
  tests::Numbers numbers{7};
  Rows<T> q, dout, k, v;
  Buffer<int32_t> cu_q, cu_k, prefix, buckets;
  Buffer<int64_t> row_ids, rng_key;
  Buffer<float> slopes, table;
  Buffer<T> out, dq, dk, dv;
  Buffer<float> lse, delta, dbias, parts;
  AttentionCuda c{};

  explicit Problem(AttentionCase& given)
      : of(given), q("q", numbers, of.tokens(), of.heads, of.width),
        dout("dout", numbers, of.tokens(), of.heads, of.width),
        k("k", numbers, of.key_tokens(), of.kv_heads, of.width),
        v("v", numbers, of.key_tokens(), of.kv_heads, of.width),
        cu_q(input("cu_q", of.cu_q)), cu_k(input("cu_k", of.cu_k)), prefix(input("prefix", of.prefix)),
        buckets(input("buckets", of.buckets)), row_ids(input("row_ids", of.row_ids)),
        rng_key(input<int64_t>("rng_key", {int64_t(of.p.rng_key)})), slopes(input("slopes", of.slopes)),
        table(input("table", of.table)), out(Buffer<T>::output("out", q.values.size())),
        dq(Buffer<T>::output("dq", q.values.size())), dk(Buffer<T>::output("dk", k.values.size())),
        dv(Buffer<T>::output("dv", k.values.size())),
        lse(Buffer<float>::output("lse", size_t(of.heads * of.tokens()))),
        delta(Buffer<float>::output("delta", lse.size())), dbias(Buffer<float>::output("dbias", of.table.size())),
        parts(Buffer<float>::output("parts", parts_of(of))) {
    c.p = of.params();
    c.p.cu_seqlens_q = cu_q.data(), c.p.cu_seqlens_k = cu_k.data(), c.p.row_ids = row_ids.data();
    if (!of.prefix.empty()) c.p.prefix_lens = prefix.data();
    if (!of.slopes.empty()) c.p.alibi_slopes = slopes.data();
    if (!of.table.empty()) c.p.relative_bias_BH = table.data(), c.p.buckets = buckets.data();
    c.p.q_THD = q.rows(), c.p.k_SKD = k.rows(), c.p.v_SKD = v.rows(), c.p.dout_THD = dout.rows();
    c.p.out_THD = out.data(), c.p.lse_HT = lse.data();
    c.p.dq_THD = dq.data(), c.p.dk_SKD = dk.data(), c.p.dv_SKD = dv.data();
    c.p.rng_key = 0, c.rng_key = rng_key.data(), c.key_tokens = of.key_tokens(), c.delta_HT = delta.data();
    if (!of.table.empty()) c.dbias_BH = dbias.data(), c.bias_parts = parts.data();
    c.dtype = int32_t(tests::kDType<T>);
  }

  static size_t parts_of(AttentionCase& of) {
    AttentionCuda c{};
    c.p = of.params();
    return size_t(tunecore_cuda_attention_bias_parts(&c));
  }

  void forward() { CHECK(tests::ran(tunecore_cuda_attention_forward, c)); }
  void backward() { CHECK(tests::ran(tunecore_cuda_attention_backward, c)); }

  void against_double(bool with_backward = true) {
    forward();
    const Gradients wanted =
        of.exact(numbers_of(q.values), numbers_of(k.values), numbers_of(v.values), numbers_of(dout.values));
    const double tolerance = 1.5 * tests::kUnit<T>;
    check_close(numbers_of(out), wanted.out, tolerance);
    check_close(numbers_of(lse), wanted.lse, 1e-6);
    if (!with_backward) return;
    backward();
    CHECK(dq.unwritten() == -1 && dk.unwritten() == -1 && dv.unwritten() == -1 && dbias.unwritten() == -1);
    check_close(numbers_of(dq), wanted.dq, 2 * tolerance);
    check_close(numbers_of(dk), wanted.dk, 2 * tolerance);
    check_close(numbers_of(dv), wanted.dv, 2 * tolerance);
    check_close(numbers_of(dbias), wanted.dbias, 2 * tolerance);
  }
};

void drop(AttentionCase& c) { c.p.drop_below = 13107, c.p.rng_key = 0x923456789ABCDEFull, c.p.site = 3; }

template <class Body>
void for_both_types(const Body& body) {
  body(bf16{}), body(f16{});
}

// Every option at once.
AttentionCase with_everything(const Lengths& lengths, int64_t width) {
  AttentionCase c(lengths);
  c.width = width, c.p.causal = true, c.p.window = 40, drop(c);
  for (const auto& [queries, keys] : lengths) c.prefix.push_back((queries + keys) / 3);
  c.slopes = {0.5f, 0.25f, 0.125f, 1.0f};
  c.buckets = {0, 1, 1, 2, 3, 3, 4}, c.table = tests::Numbers(5).vector(20);
  return c;
}

}  // namespace

TEST(cuda_attention_matches_double_with_each_option) {
  for (AttentionCase& c : all_options()) {
    if (c.width == 48) c.width = 32;  // no kernel of that width: the caller pads
    for_both_types([&](auto zero) { Problem<decltype(zero)>(c).against_double(); });
  }
}

TEST(cuda_attention_matches_double_at_each_width) {
  for (const int64_t width : {16, 32, 64, 80, 96, 128, 256}) {
    AttentionCase c = with_everything(kRagged, width);
    for_both_types([&](auto zero) { Problem<decltype(zero)>(c).against_double(width <= 128); });
  }
}

TEST(cuda_attention_in_every_order_of_threads_and_copies) {
  Doubles first;
  tests::in_every_order_and_copy([&] {
    AttentionCase c = with_everything({{5, 5}, {67, 70}}, 16);
    c.heads = 2, c.kv_heads = 1, c.table.resize(10), c.slopes.resize(2);
    Problem<bf16> problem(c);
    problem.against_double();
    Doubles all;
    for (const auto* x : {&problem.out, &problem.dq, &problem.dk, &problem.dv})
      for (double n : numbers_of(*x)) all.push_back(n);
    for (double n : numbers_of(problem.dbias)) all.push_back(n);
    if (first.empty()) first = all;
    CHECK(all == first);  // every bit
  });
}

TEST(cuda_attention_of_many_short_sequences_and_a_long_one) {
  Lengths lengths = {{1, 1}, {300, 300}};
  for (int n = 2; n < 34; n += 3) lengths.emplace_back(n, n);
  AttentionCase c(lengths);
  c.heads = c.kv_heads = 1, drop(c);
  Problem<bf16>(c).against_double();
}

TEST(cuda_attention_of_nothing) {
  AttentionCase none({}), no_keys({{0, 0}, {3, 0}}), no_queries({{0, 5}, {0, 0}});
  for (AttentionCase* c : {&none, &no_keys, &no_queries}) {
    c->buckets = {0, 1, 1}, c->table = tests::Numbers(5).vector(8);
    Problem<bf16> problem(*c);
    if (c == &none) {
      problem.forward();
      continue;
    }
    problem.against_double();
    for (double x : numbers_of(problem.dbias)) CHECK(x == 0.0);
  }
}

TEST(cuda_attention_keeps_nan_visible) {
  AttentionCase c({{20, 20}});
  Problem<bf16> problem(c);
  problem.k.buffer.set(size_t(17 * problem.k.stride()), from_float<bf16>(NAN));
  problem.forward();
  for (int64_t t = 0; t < 20; ++t) CHECK(std::isnan(tests::number(problem.out[size_t(t * c.heads * c.width)])));
}

TEST(cuda_attention_refuses_what_it_cannot_do) {
  AttentionCase c({{3, 3}});
  Problem<bf16> problem(c);
  const auto refused = [&](const char* part, const std::function<void(AttentionCuda&)>& change) {
    AttentionCuda wrong = problem.c;
    change(wrong);
    CHECK(tests::has(tests::failure_of(tunecore_cuda_attention_backward, wrong), part));
  };
  refused("bfloat16 or float16", [](AttentionCuda& w) { w.dtype = int32_t(DType::f32); });
  refused("heads of this width", [](AttentionCuda& w) { w.p.width = 48; });
  refused("heads of this width", [](AttentionCuda& w) { w.p.width = 256; });
  refused("multiple of the kv-heads", [](AttentionCuda& w) { w.p.kv_heads = 3; });
  refused("multiples of 16 bytes", [](AttentionCuda& w) { w.p.k_SKD.token_stride = 12; });
  refused("2**29", [](AttentionCuda& w) { w.p.tokens = 1 << 29; });
  refused("dropout wants a key", [](AttentionCuda& w) { w.p.drop_below = 9, w.rng_key = nullptr; });
  refused("belong together", [](AttentionCuda& w) { w.dbias_BH = w.delta_HT; });
}
