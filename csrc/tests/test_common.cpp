// philox, parallel_for, work list, tensor views, capability.
#include <atomic>
#include <string>

#include "../common/cpu/capability.h"
#include "../common/parallel.h"
#include "../common/philox.h"
#include "../common/tensor.h"
#include "check.h"

using namespace tunecore;

namespace {

bool same(const Philox4& got, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return got.w[0] == a && got.w[1] == b && got.w[2] == c && got.w[3] == d;
}

template <class Body>
std::string error_of(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

dlpack::Tensor tensor_of(void* data, int32_t ndim, int64_t* shape, int64_t* strides, dlpack::DataType dtype) {
  return dlpack::Tensor{data, {dlpack::kCPU, 0}, ndim, dtype, shape, strides, 0};
}

constexpr dlpack::DataType kF32{dlpack::kFloat, 32, 1};

}  // namespace

// The known answers of the Random123 distribution (kat_vectors, philox4x32 with 10 rounds).
TEST(capability_is_detected) {
  std::printf("the best variant here is %s\n", name_of(detected_capability()));
  CHECK(detected_capability() >= Capability::baseline);
}

TEST(philox_known_answers) {
  CHECK(same(philox4x32_10(0, 0, 0, 0, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  const uint32_t f = 0xffffffffu;
  CHECK(same(philox4x32_10(f, f, f, f, f, f), 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  CHECK(same(philox4x32_10(0xa4093822, 0x299f31d0, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344), 0xd16cfe09,
             0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(parallel_for_runs_every_item_once) {
  for (int threads : {1, 2, 5}) {
    for (int64_t items : {0, 1, 3, 1000}) {
      std::vector<std::atomic<int>> seen(items);
      std::vector<std::atomic<int>> inside(threads);
      parallel_for(items, threads, [&](int64_t i, int worker) {
        CHECK(inside[worker].fetch_add(1) == 0);  // one call at a time per worker
        ++seen[i];
        inside[worker].fetch_sub(1);
      });
      for (auto& count : seen) CHECK(count == 1);
    }
  }
}

TEST(parallel_for_rethrows) {
  for (int threads : {1, 4}) {
    const std::string text = error_of([&] {
      parallel_for(100, threads, [](int64_t i, int) { require(i != 57, "item 57"); });
    });
    CHECK(text == "item 57");
  }
}

TEST(work_list_is_longest_first) {
  const WorkList list({3, 9, 9, 1});
  CHECK(list.size() == 4);
  CHECK(list[0] == 1 && list[1] == 2 && list[2] == 0 && list[3] == 3);
}

TEST(tensor_view_reads_and_refuses) {
  float data[12] = {};
  int64_t shape[2] = {3, 4}, transposed[2] = {1, 3};
  const TensorView x = TensorView::from_dlpack(tensor_of(data, 2, shape, nullptr, kF32), "x");
  CHECK(x.stride(0) == 4 && x.stride(1) == 1 && x.numel() == 12 && x.data<float>() == data);
  x.dtype({DType::f32}).dims(2).shape({3, TensorView::kAny}).contiguous().last_stride_one();

  const TensorView t = TensorView::from_dlpack(tensor_of(data, 2, shape, transposed, kF32), "t");
  CHECK(contains(error_of([&] { t.contiguous(); }), "argument 't': wanted a contiguous tensor, got float32[3, 4]"));
  CHECK(contains(error_of([&] { t.last_stride_one(); }), "last stride of 1"));
  CHECK(contains(error_of([&] { t.dtype({DType::bf16, DType::i64}); }), "wanted bfloat16 or int64"));
  CHECK(contains(error_of([&] { t.shape({3, 5}); }), "wanted shape [3, 5]"));
  CHECK(contains(error_of([&] { t.dims(3); }), "wanted 3 dimensions"));
  CHECK(contains(error_of([&] { t.data<double>(); }), "elements of 8 bytes"));
  CHECK(contains(error_of([&] { TensorView::from_dlpack(tensor_of(nullptr, 2, shape, nullptr, kF32), "n"); }),
                 "argument 'n': wanted data in memory"));
  int64_t empty[2] = {0, 4};
  CHECK(TensorView::from_dlpack(tensor_of(nullptr, 2, empty, nullptr, kF32), "e").numel() == 0);
  CHECK(contains(error_of([&] {
                   TensorView::from_dlpack(tensor_of(data, 2, shape, nullptr, {dlpack::kFloat, 8, 1}), "h");
                 }),
                 "not supported"));
  CHECK(contains(error_of([&] { TensorView::from_dlpack(tensor_of(data, 9, shape, nullptr, kF32), "d"); }),
                 "9 dimensions"));
}

TEST(byte_offset_is_added) {
  float data[4] = {0, 1, 2, 3};
  int64_t shape[1] = {2};
  dlpack::Tensor t = tensor_of(data, 1, shape, nullptr, kF32);
  t.byte_offset = 8;
  CHECK(TensorView::from_dlpack(t, "x").data<float>()[0] == 2.0f);
}

TEST(capability_names_are_checked) {
  set_capability("default");
  CHECK(capability() == Capability::baseline);
  CHECK(contains(error_of([] { set_capability("sse9"); }), "unknown; choices here: default"));
  for (Capability c : kCapabilities)
    if (c > detected_capability())
      CHECK(contains(error_of([c] { set_capability(name_of(c)); }), "not supported by this processor"));
  set_capability("default");
  CHECK(capability() == Capability::baseline);  // a refused name changes nothing
  set_capability("");
  CHECK(capability() == detected_capability());
}
