// The Python face of the attention kernels.
#include <algorithm>

#include "../common/capsule.h"
#include "attention_cpu.h"

namespace py = pybind11;

namespace tunecore {
namespace {

AttentionRows rows_of(const TensorView& x) { return {x.raw(), x.stride(0), x.stride(1)}; }

// What forward and backward take alike, in the order of the Python signature.
struct Options {
  bool causal;
  py::object prefix_lens;
  int64_t window;
  float scale;
  py::object alibi_slopes;
  uint32_t drop_below;
  uint64_t rng_key;
  py::object row_ids;
  uint32_t site;
  py::object relative_bias, buckets;
};

Options options_of(const py::tuple& t) {
  require(t.size() == 11, "argument 'options': wanted 11 values, got " + std::to_string(t.size()));
  return {t[0].cast<bool>(), t[1], t[2].cast<int64_t>(), t[3].cast<float>(), t[4], t[5].cast<uint32_t>(),
          t[6].cast<uint64_t>(), t[7], t[8].cast<uint32_t>(), t[9], t[10]};
}

void check_lengths(const int32_t* cu, int64_t sequences, int64_t tokens, const char* name, int64_t* longest) {
  *longest = 0;
  bool rising = cu[0] == 0 && cu[sequences] == tokens;
  for (int64_t b = 0; b < sequences; ++b) {
    rising = rising && cu[b] <= cu[b + 1];
    *longest = std::max<int64_t>(*longest, cu[b + 1] - cu[b]);
  }
  require(rising, std::string("argument '") + name + "': wanted numbers rising from 0 to " + std::to_string(tokens));
}

void set_options(AttentionParams& p, const Options& o) {
  p.causal = o.causal;
  if (const auto x = optional_view_of(o.prefix_lens, "prefix_lens")) {
    p.prefix_lens = x->dtype({DType::i32}).shape({p.sequences}).contiguous().data<int32_t>();
    p.causal = true;
  }
  p.window = o.window;
  p.scale = o.scale;
  if (const auto x = optional_view_of(o.alibi_slopes, "alibi_slopes"))
    p.alibi_slopes = x->dtype({DType::f32}).shape({p.heads}).contiguous().data<float>();
  p.drop_below = o.drop_below;
  require(p.drop_below < 65536, "argument 'drop_below': wanted less than 65536");
  p.rng_key = o.rng_key;
  p.site = o.site;
  if (const auto x = optional_view_of(o.row_ids, "row_ids"))
    p.row_ids = x->dtype({DType::i64}).shape({p.sequences}).contiguous().data<int64_t>();
  require(!p.drop_below || p.row_ids || !p.sequences, "argument 'row_ids': wanted with dropout, got none");
  const auto table = optional_view_of(o.relative_bias, "relative_bias");
  const auto buckets = optional_view_of(o.buckets, "buckets");
  require(bool(table) == bool(buckets), "arguments 'relative_bias' and 'buckets' belong together");
  if (!table) return;
  p.relative_bias_BH = table->dtype({DType::f32}).shape({TensorView::kAny, p.heads}).contiguous().data<float>();
  p.buckets = buckets->dtype({DType::i32}).dims(1).contiguous().data<int32_t>();
  p.bucket_count = table->size(0);
  p.reach = buckets->size(0) / 2;
  require(buckets->size(0) % 2 == 1, "argument 'buckets': wanted an odd number of distances");
  for (int64_t n = 0; n < buckets->size(0); ++n)
    require(p.buckets[n] >= 0 && p.buckets[n] < p.bucket_count,
            "argument 'buckets': " + std::to_string(p.buckets[n]) + " at " + std::to_string(n) +
                " is not a row of a table of " + std::to_string(p.bucket_count));
}

AttentionParams params_of(const TensorView& q, const TensorView& k, const TensorView& v, const TensorView& cu_q,
                          const TensorView& cu_k) {
  AttentionParams p{};
  q.dtype({DType::f32, DType::bf16}).dims(3).last_stride_one();
  p.tokens = q.size(0), p.heads = q.size(1), p.width = q.size(2);
  require(p.width % 16 == 0 && p.width <= 256, "argument 'q': wanted a head width of 16, 32 ... 256, got " + q.describe());
  k.dtype({q.dtype()}).shape({TensorView::kAny, TensorView::kAny, p.width}).last_stride_one();
  p.kv_heads = k.size(1);
  require(p.kv_heads > 0 && p.heads % p.kv_heads == 0, "argument 'k': wanted heads that divide those of q, got " + k.describe());
  v.dtype({q.dtype()}).shape({k.size(0), p.kv_heads, p.width}).last_stride_one();
  p.q_THD = rows_of(q), p.k_SKD = rows_of(k), p.v_SKD = rows_of(v);
  p.sequences = cu_q.dtype({DType::i32}).dims(1).contiguous().size(0) - 1;
  require(p.sequences >= 0, "argument 'cu_seqlens_q': wanted at least one number");
  p.cu_seqlens_q = cu_q.data<int32_t>();
  p.cu_seqlens_k = cu_k.dtype({DType::i32}).shape({p.sequences + 1}).contiguous().data<int32_t>();
  check_lengths(p.cu_seqlens_q, p.sequences, p.tokens, "cu_seqlens_q", &p.longest_q);
  check_lengths(p.cu_seqlens_k, p.sequences, k.size(0), "cu_seqlens_k", &p.longest_k);
  return p;
}

AttentionType type_of(const TensorView& q) { return q.dtype() == DType::f32 ? AttentionType::f32 : AttentionType::bf16; }

void* like(const py::object& capsule, const char* name, const TensorView& model) {
  return view_of(capsule, name)
      .dtype({model.dtype()})
      .shape({model.size(0), model.size(1), model.size(2)})
      .contiguous()
      .raw();
}

float* lse_of(const py::object& capsule, const AttentionParams& p) {
  return view_of(capsule, "lse").dtype({DType::f32}).shape({p.heads, p.tokens}).contiguous().data<float>();
}

void attention(const py::object& q, const py::object& k, const py::object& v, const py::object& cu_q,
               const py::object& cu_k, const py::object& out, const py::object& lse, const py::tuple& options,
               int threads) {
  const TensorView q_THD = view_of(q, "q");
  AttentionParams p = params_of(q_THD, view_of(k, "k"), view_of(v, "v"), view_of(cu_q, "cu_seqlens_q"),
                                view_of(cu_k, "cu_seqlens_k"));
  set_options(p, options_of(options));
  p.out_THD = like(out, "out", q_THD);
  p.lse_HT = lse_of(lse, p);
  const py::gil_scoped_release released;
  attention_forward_cpu(p, type_of(q_THD), threads);
}

void attention_backward(const py::object& dout, const py::object& q, const py::object& k, const py::object& v,
                        const py::object& out, const py::object& lse, const py::object& cu_q, const py::object& cu_k,
                        const py::object& dq, const py::object& dk, const py::object& dv, const py::object& dbias,
                        const py::tuple& options, int threads) {
  const TensorView q_THD = view_of(q, "q"), k_SKD = view_of(k, "k"), dout_THD = view_of(dout, "dout");
  AttentionParams p =
      params_of(q_THD, k_SKD, view_of(v, "v"), view_of(cu_q, "cu_seqlens_q"), view_of(cu_k, "cu_seqlens_k"));
  set_options(p, options_of(options));
  dout_THD.dtype({q_THD.dtype()}).shape({p.tokens, p.heads, p.width}).last_stride_one();
  p.dout_THD = rows_of(dout_THD);
  p.out_THD = like(out, "out", q_THD);
  p.lse_HT = lse_of(lse, p);
  p.dq_THD = like(dq, "dq", q_THD);
  p.dk_SKD = like(dk, "dk", k_SKD);
  p.dv_SKD = like(dv, "dv", k_SKD);
  float* dbias_BH = nullptr;
  if (const auto x = optional_view_of(dbias, "dbias"))
    dbias_BH = x->dtype({DType::f32}).shape({p.bucket_count, p.heads}).contiguous().data<float>();
  require(!dbias_BH || p.relative_bias_BH, "argument 'dbias': wanted none without a relative_bias");
  const py::gil_scoped_release released;
  attention_backward_cpu(p, type_of(q_THD), dbias_BH, threads);
}

}  // namespace

void def_attention(py::module_& m) {
  m.def("attention", &attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("cu_seqlens_q"),
        py::arg("cu_seqlens_k"), py::arg("out"), py::arg("lse"), py::arg("options"), py::arg("threads"),
        "Attention of packed q [T, H, D] to k, v [S, K, D], into out [T, H, D] and lse [H, T]. options: causal, "
        "prefix_lens, window (0: none), scale, alibi_slopes, drop_below, rng_key, row_ids, site, relative_bias, "
        "buckets.");
  m.def("attention_backward", &attention_backward, py::arg("dout"), py::arg("q"), py::arg("k"), py::arg("v"),
        py::arg("out"), py::arg("lse"), py::arg("cu_seqlens_q"), py::arg("cu_seqlens_k"), py::arg("dq"), py::arg("dk"),
        py::arg("dv"), py::arg("dbias"), py::arg("options"), py::arg("threads"),
        "Gradients into dq, dk, dv and, where it is given, dbias [buckets, H]; options as for attention.");
}

}  // namespace tunecore
