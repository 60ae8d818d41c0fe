// The scheduler of fibers: barriers, collectives and asynchronous copies of one block at a time.
#include "emulation.h"

#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <exception>
#include <random>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include "state.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace tunecore::emulation {
namespace {

constexpr size_t kStackBytes = 128 << 10;

enum class State { ready, at_barrier, in_collective, ended };

struct Copy {
  Region *to_region, *from_region;
  char* to;
  const char* from;
  bool valid;
  int group;
};

struct Fiber {
  ucontext_t context;
  State state;
  dim3 index;
  Site site;
  uint32_t mask;
  void* slot;
  std::deque<Copy> copies;
  int open_group;  // that the next commit closes
};

struct Scheduler {
  ucontext_t context;
  std::vector<std::unique_ptr<char[]>> stacks;
  std::vector<Fiber> fibers;
  int running = 0;
  const std::function<void()>* body = nullptr;
  std::exception_ptr failure;
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
};

Scheduler scheduler;

Fiber& self() { return scheduler.fibers[size_t(scheduler.running)]; }

std::string text(const dim3& d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

std::string text(const Site& site) {
  const std::string file = site.file;
  return std::string(site.what) + " at " + file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line);
}

// AddressSanitizer is told of every change of stack; elsewhere these do nothing.
void before_switch(void** fake, const void* bottom, size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake, bottom, size);
#else
  (void)fake, (void)bottom, (void)size;
#endif
}

void after_switch(void* fake, const void** old_bottom, size_t* old_size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, old_bottom, old_size);
#else
  (void)fake, (void)old_bottom, (void)old_size;
#endif
}

void yield(bool for_ever = false) {
  void* fake = nullptr;
  Fiber& me = self();
  before_switch(for_ever ? nullptr : &fake, scheduler.stack_bottom, scheduler.stack_size);
  swapcontext(&me.context, &scheduler.context);
  after_switch(fake, nullptr, nullptr);
}

void enter() {
  after_switch(nullptr, &scheduler.stack_bottom, &scheduler.stack_size);
  try {
    (*scheduler.body)();
    if (!self().copies.empty()) fail("ended with a cp.async that it never waited for");
  } catch (...) {
    scheduler.failure = std::current_exception();
  }
  self().state = State::ended;
  yield(true);
}

void prepare(int thread) {
  Fiber& fiber = scheduler.fibers[size_t(thread)];
  while (scheduler.stacks.size() <= size_t(thread)) scheduler.stacks.emplace_back(new char[kStackBytes]);
  char* const stack = scheduler.stacks[size_t(thread)].get();
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, kStackBytes);
#endif
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
  const unsigned t = unsigned(thread);
  fiber.index = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y);
  fiber.state = State::ready;
  fiber.copies.clear();
  fiber.open_group = 0;
}

void resume(int thread) {
  scheduler.running = thread;
  current.thread = thread;
  threadIdx = self().index;
  before_switch(&scheduler.fake_stack, scheduler.stacks[size_t(thread)].get(), kStackBytes);
  swapcontext(&scheduler.context, &self().context);
  after_switch(scheduler.fake_stack, nullptr, nullptr);
  if (scheduler.failure) std::rethrow_exception(std::exchange(scheduler.failure, nullptr));
}

// No thread can go on: release the barrier all of them wait at, or say who keeps whom waiting.
void release_barrier() {
  const auto& fibers = scheduler.fibers;
  const auto stray = [&](int thread, const std::string& what) {
    current.thread = scheduler.running = thread;
    threadIdx = fibers[size_t(thread)].index;
    fail(what);
  };
  for (size_t t = 0; t < fibers.size(); ++t) {
    if (fibers[t].state != State::in_collective) continue;
    for (size_t lane = 0; lane < 32; ++lane) {
      if (!(fibers[t].mask >> lane & 1)) continue;
      const size_t other = t / 32 * 32 + lane;
      const std::string where = text(fibers[t].site) + " waits for lane " + std::to_string(lane) + ", which ";
      if (other >= fibers.size()) stray(int(t), where + "does not exist");
      if (fibers[other].state == State::ended) stray(int(t), where + "ended");
      if (!(fibers[other].site == fibers[t].site)) stray(int(t), where + "waits in " + text(fibers[other].site));
      if (fibers[other].mask != fibers[t].mask) stray(int(t), where + "gives another mask");
    }
  }
  const auto waiting = std::find_if(fibers.begin(), fibers.end(), [](const Fiber& f) { return f.state == State::at_barrier; });
  for (size_t t = 0; t < fibers.size(); ++t) {
    const std::string others = "divergent barrier: others wait in " + text(waiting->site) + ", this thread ";
    if (fibers[t].state == State::ended) stray(int(t), others + "ended");
    if (!(fibers[t].site == waiting->site)) stray(int(t), others + "in " + text(fibers[t].site));
  }
  ++current.barrier;
  for (Fiber& fiber : scheduler.fibers) fiber.state = State::ready;
}

void run_block(std::minstd_rand& random) {
  const size_t threads = scheduler.fibers.size();
  std::vector<int> order(threads);
  for (size_t t = 0; t < threads; ++t) order[t] = int(t), prepare(int(t));
  if (settings().order == Order::reverse) std::reverse(order.begin(), order.end());
  for (;;) {
    if (settings().order == Order::random) std::shuffle(order.begin(), order.end(), random);
    bool moved = false, over = true;
    for (int t : order) {
      if (scheduler.fibers[size_t(t)].state == State::ready) resume(t), moved = true;
      over = over && scheduler.fibers[size_t(t)].state == State::ended;
    }
    if (over) return;
    if (!moved) release_barrier();
  }
}

void finish_copy(const Copy& copy) {
  if (copy.valid) touch(copy.from_region, copy.from, 16, Touch::read);
  copy.valid ? void(memcpy(copy.to, copy.from, 16)) : void(memset(copy.to, 0, 16));
}

}  // namespace

Settings& settings() {
  static Settings all;
  return all;
}

void fail(const std::string& message) {
  throw Failure(current.kernel + ", block " + text(blockIdx) + ", thread " + text(threadIdx) + ": " + message);
}

void launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  current.kernel = kernel;
  ++current.launch;
  gridDim = grid, blockDim = block, blockIdx = threadIdx = dim3(0, 0, 0);
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z, threads = uint64_t(block.x) * block.y * block.z;
  if (blocks == 0 || threads == 0 || threads > 1024 || grid.y > 65535 || grid.z > 65535 || grid.x > 0x7FFFFFFFu)
    fail("invalid launch: grid " + text(grid) + ", block " + text(block));
  if (shared_bytes > (227u << 10)) fail("invalid launch: " + std::to_string(shared_bytes) + " bytes of shared memory");
  scheduler.body = &body;
  scheduler.fibers.resize(size_t(threads));
  std::minstd_rand random(settings().seed);
  std::vector<uint64_t> order(static_cast<size_t>(blocks));
  for (size_t b = 0; b < order.size(); ++b) order[b] = b;
  if (settings().order == Order::reverse) std::reverse(order.begin(), order.end());
  if (settings().order == Order::random) std::shuffle(order.begin(), order.end(), random);
  for (uint64_t b : order) {
    blockIdx = dim3(unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y));
    begin_block(uint32_t(b), shared_bytes, size_t(threads));
    run_block(random);
    end_block();
  }
}

void barrier(const Site& site) {
  self().state = State::at_barrier;
  self().site = site;
  yield();
}

void collective(const Site& site, uint32_t mask, void* slot, Complete complete) {
  Fiber& me = self();
  const size_t first = size_t(scheduler.running) / 32 * 32, lane = size_t(scheduler.running) % 32;
  if (!(mask >> lane & 1)) fail(text(site) + " by a lane outside its mask");
  me.state = State::in_collective, me.site = site, me.mask = mask, me.slot = slot;
  void* slots[32] = {};
  for (size_t i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    const Fiber* const other = first + i < scheduler.fibers.size() ? &scheduler.fibers[first + i] : nullptr;
    if (!other || other->state != State::in_collective || !(other->site == site) || other->mask != mask) return yield();
    slots[i] = other->slot;
  }
  complete(slots);
  if (complete == complete_nothing && mask == 0xFFFFFFFFu) ++current.warp_barrier[first / 32];
  for (size_t i = 0; i < 32; ++i)
    if (slots[i]) scheduler.fibers[first + i].state = State::ready;
}

void complete_nothing(void* const*) {}

void complete_shuffle(void* const* slots) {
  for (int i = 0; i < 32; ++i) {
    auto* const mine = static_cast<Shuffle*>(slots[i]);
    if (!mine) continue;
    if (mine->source < 0 || mine->source > 31 || !slots[mine->source])
      fail("shuffle: lane " + std::to_string(i) + " reads lane " + std::to_string(mine->source) + ", outside the mask");
    mine->result = static_cast<Shuffle*>(slots[mine->source])->bits;
  }
}

void async_copy(Region* to_region, void* to, Region* from_region, const void* from, bool valid) {
  touch(to_region, to, 16, Touch::async_begin);
  const Copy copy{to_region, from_region, static_cast<char*>(to), static_cast<const char*>(from), valid, self().open_group};
  if (settings().async_copy == AsyncCopy::at_issue) finish_copy(copy);
  self().copies.push_back(copy);
}

void async_commit() { ++self().open_group; }

void async_wait(int groups_left) {
  std::deque<Copy>& copies = self().copies;
  while (!copies.empty() && copies.front().group < self().open_group - groups_left) {
    const Copy copy = copies.front();
    copies.pop_front();
    if (settings().async_copy == AsyncCopy::at_wait) finish_copy(copy);
    touch(copy.to_region, copy.to, 16, Touch::async_end);
  }
}

}  // namespace tunecore::emulation
