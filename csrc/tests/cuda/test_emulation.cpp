// The emulation must catch every planted fault, in every order of threads, and nothing in a right kernel.
#include "../../common/cuda/reductions.h"
#include "../../common/cuda/tensor_core.h"
#include "machine.h"

using namespace tunecore;
using namespace tunecore::cuda;
using emulation::Buffer;

namespace {

enum Fault {
  kNone, kNoBarrier, kReadPastEnd, kReadBeforeStart, kWritePastEnd, kWriteInput, kMisaligned, kSharedPastEnd,
  kSharedUnwritten, kEndedBeforeBarrier, kOtherBarrier, kLaneEnded, kLaneElsewhere, kLaneOutsideMask, kShuffleOutside,
  kUnwritten, kTwoBlocksWrite, kRawWrite,
};

struct Reversal {
  const float* x_N;
  float* y_N;
  float* sum;
  Fault fault;
};

constexpr int kThreads = 64, kBlocks = 3, kCount = kThreads * kBlocks;

// y = x with each block's elements in reverse, through shared memory; sum[block] = the sum of its elements.
__global__ void reverse_blocks(const Reversal p) {
  TC_SMEM(float, values);
  const auto x_N = global<const float>(p.x_N);
  const auto y_N = global<float>(p.y_N);
  const int i = int(threadIdx.x), n = int(blockIdx.x) * kThreads + i;
  const bool last = n == kCount - 1, odd_one = i == 5;
  store(values, i, load(x_N, p.fault == kReadPastEnd && last ? kCount : p.fault == kReadBeforeStart && n == 0 ? -1 : n));
  if (p.fault == kSharedPastEnd && odd_one) store(values, kThreads + kThreads / kWarp, 0.0f);
  if (p.fault == kEndedBeforeBarrier && odd_one) return;
  if (p.fault == kOtherBarrier && odd_one)
    __syncthreads();
  else if (p.fault != kNoBarrier)
    __syncthreads();
  const float value = load(values, p.fault == kSharedUnwritten && odd_one ? kThreads : kThreads - 1 - i);
  if (p.fault == kMisaligned && odd_one) load_pack<2>(x_N, 1);
  if (p.fault == kWriteInput && odd_one) store(global<float>(p.x_N), 0, 1.0f);
  if (p.fault == kTwoBlocksWrite && odd_one) store(y_N, 0, 1.0f);
  if (p.fault == kRawWrite && last) p.y_N[kCount] = 1.0f;
  if (p.fault == kWritePastEnd && last) store(y_N, kCount, value);
  if (!(p.fault == kUnwritten && last)) store(y_N, n, value);
  if (p.fault == kLaneEnded && odd_one) return;
  if (p.fault == kLaneOutsideMask && odd_one) __shfl_sync(~(1u << 5), value, 0);
  if (p.fault == kShuffleOutside && i < kWarp) __shfl_sync(kAllLanes, value, 7), __shfl_sync(1u << i, value, 7);
  float sum = p.fault == kLaneElsewhere && odd_one ? __shfl_xor_sync(kAllLanes, value, 1) : warp_sum(value);
  __syncthreads();
  sum = block_sum(values + kThreads, value);
  if (i == 0) store(global<float>(p.sum), blockIdx.x, sum);
}

std::string run_reversal(Fault fault) {
  tests::Numbers numbers(3);
  auto x = Buffer<float>::input("x", numbers.vector(kCount));
  auto y = Buffer<float>::output("y", kCount);
  auto sum = Buffer<float>::output("sum", kBlocks);
  const Reversal p{x.data(), y.data(), sum.data(), fault};
  const std::string message = tests::caught(
      [&] { TC_LAUNCH(reverse_blocks, kBlocks, kThreads, (kThreads + kThreads / kWarp) * sizeof(float), nullptr, p); });
  if (!message.empty()) return message;
  if (y.unwritten() >= 0) return "unwritten y[" + std::to_string(y.unwritten()) + "]";
  for (int b = 0; b < kBlocks; ++b) {
    double wanted = 0;
    for (int i = 0; i < kThreads; ++i) {
      CHECK(y[size_t(b * kThreads + i)] == x[size_t(b * kThreads + kThreads - 1 - i)]);
      wanted += double(x[size_t(b * kThreads + i)]);
    }
    CHECK_NEAR(sum[size_t(b)], wanted, 1e-5);
  }
  return "";
}

struct Pipeline {
  const float* x_N;
  float* y_N;
  bool wait, barrier;
};

// Copies arrive asynchronously, each thread reads what its neighbour asked for.
__global__ void copy_ahead(const Pipeline p) {
  TC_SMEM(float, values);
  const int i = int(threadIdx.x);
  cp_async_16(values + 4 * i, global<const float>(p.x_N) + 4 * i);
  cp_async_commit();
  cp_async_16(values + 4 * (kWarp + i), global<const float>(p.x_N), false);
  cp_async_commit();
  p.wait ? cp_async_wait<1>() : cp_async_wait<2>();
  if (p.barrier) __syncthreads();
  const auto pack = load_pack<4>(values, 4 * ((i + 1) % kWarp));
  store_pack(global<float>(p.y_N), 4 * i, pack);
  cp_async_wait<0>();
}

std::string run_pipeline(bool wait, bool barrier) {
  tests::Numbers numbers(4);
  auto x = Buffer<float>::input("x", numbers.vector(4 * kWarp));
  auto y = Buffer<float>::output("y", 4 * kWarp);
  const Pipeline p{x.data(), y.data(), wait, barrier};
  const std::string message =
      tests::caught([&] { TC_LAUNCH(copy_ahead, 1, kWarp, 8 * kWarp * sizeof(float), nullptr, p); });
  if (message.empty())
    for (size_t i = 0; i < y.size(); ++i) CHECK(y[i] == x[(i + 4) % y.size()]);
  return message;
}

struct Histogram {
  float* count;
  bool atomic;
};

__global__ void count_threads(const Histogram p) {
  const auto count = global<float>(p.count);
  if (p.atomic)
    atomic_add(count, 0, 1.0f);
  else
    store(count, 0, load(count) + 1.0f);
}

}  // namespace

TEST(a_right_kernel_passes) {
  tests::in_every_order([] { CHECK(run_reversal(kNone).empty()); });
}

TEST(every_planted_fault_is_caught_in_every_order) {
  const std::pair<Fault, const char*> faults[] = {
      {kReadPastEnd, "read outside x[192] of 192"},
      {kReadBeforeStart, "read outside x[-1] of 192"},
      {kWritePastEnd, "write outside y[192] of 192"},
      {kWriteInput, "write to the input x[0]"},
      {kMisaligned, "read of 8 bytes, misaligned, at x[1]"},
      {kSharedPastEnd, "write outside shared[264] of 264"},
      {kSharedUnwritten, "read of what nobody wrote: shared[256]"},
      {kEndedBeforeBarrier, "thread (5, 0, 0): divergent barrier"},
      {kOtherBarrier, "divergent barrier"},
      {kLaneEnded, "waits for lane 5, which ended"},
      {kLaneElsewhere, "waits for lane"},
      {kLaneOutsideMask, "__shfl_sync at test_emulation.cpp"},
      {kShuffleOutside, "reads lane 7, outside the mask"},
      {kUnwritten, "unwritten y[191]"},
      {kTwoBlocksWrite, "race"},
      {kRawWrite, "the guard zone was written: y[192]"},
  };
  tests::in_every_order([&] {
    for (const auto& [fault, words] : faults) CHECK(tests::has(run_reversal(fault), words));
  });
}

TEST(a_missing_barrier_is_caught_in_every_order) {
  tests::in_every_order([] {
    const std::string message = run_reversal(kNoBarrier);
    CHECK(message.find("race") != std::string::npos || tests::has(message, "read of what nobody wrote"));
  });
}

TEST(a_fault_names_kernel_block_and_thread) {
  CHECK(tests::has(run_reversal(kReadPastEnd), "reverse_blocks, block (2, 0, 0), thread (63, 0, 0): read outside x"));
}

TEST(a_missing_wait_of_cp_async_is_caught_in_both_modes) {
  tests::in_every_order_and_copy([] {
    CHECK(run_pipeline(true, true).empty());
    CHECK(tests::has(run_pipeline(false, true), "the target of a cp.async is used before a wait"));
    const std::string message = run_pipeline(true, false);
    CHECK(message.find("before a wait") != std::string::npos || message.find("nobody wrote") != std::string::npos ||
          tests::has(message, "race"));
  });
}

TEST(threads_that_add_without_an_atomic_race) {
  tests::in_every_order([] {
    for (const bool atomic : {true, false}) {
      auto count = Buffer<float>::in_place("count", {0.0f});
      const Histogram p{count.data(), atomic};
      const std::string message = tests::caught([&] { TC_LAUNCH(count_threads, 2, 32, 0, nullptr, p); });
      if (!atomic) CHECK(tests::has(message, "race"));
      if (atomic) CHECK(message.empty() && count[0] == 64.0f);
    }
  });
}

TEST(a_launch_the_device_would_refuse_is_refused) {
  auto count = Buffer<float>::in_place("count", {0.0f});
  const Histogram p{count.data(), true};
  CHECK(tests::has(tests::caught([&] { TC_LAUNCH(count_threads, 1, 1025, 0, nullptr, p); }), "invalid launch"));
  CHECK(tests::has(tests::caught([&] { TC_LAUNCH(count_threads, 0, 32, 0, nullptr, p); }), "invalid launch"));
  CHECK(tests::has(tests::caught([&] { TC_LAUNCH(count_threads, 1, 32, 1 << 20, nullptr, p); }), "shared memory"));
}

TEST(an_unregistered_pointer_is_refused) {
  float loose = 0.0f;
  const Histogram p{&loose, true};
  CHECK(tests::has(tests::caught([&] { TC_LAUNCH(count_threads, 1, 32, 0, nullptr, p); }), "no registered buffer holds"));
}
