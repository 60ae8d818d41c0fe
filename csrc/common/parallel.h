// parallel_for over work items with the number of threads passed in (torch's, at every call).
//
// Two back ends: OpenMP, which shares torch's libgomp, and std::thread (TUNECORE_STD_THREAD) for ThreadSanitizer,
// which reports false races on libgomp. An item must not depend on which thread runs it nor on the order of items:
// then results are the same for any number of threads. For baseline files only: it holds templates and STL.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <numeric>
#include <vector>

#ifdef TUNECORE_STD_THREAD
#include <thread>
#endif

namespace tunecore {

// Items sorted by falling cost (ties by index), so that the longest start first and none is left for the end.
class WorkList {
 public:
  explicit WorkList(const std::vector<int64_t>& cost) : order_(cost.size()) {
    std::iota(order_.begin(), order_.end(), int64_t{0});
    std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) { return cost[a] > cost[b]; });
  }
  int64_t size() const { return static_cast<int64_t>(order_.size()); }
  int64_t operator[](int64_t i) const { return order_[i]; }

 private:
  std::vector<int64_t> order_;
};

// Run body(item, worker) for item = 0 .. items-1, taken in order from a shared counter; worker < threads, one call at
// a time per worker, so it may index scratch memory. The first exception is rethrown after all workers have ended.
template <class Body>
void parallel_for(int64_t items, int threads, const Body& body) {
  const int workers = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, items)));
  if (workers == 1) {
    for (int64_t i = 0; i < items; ++i) body(i, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  auto work = [&](int worker) {
    try {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(i, worker);
    } catch (...) {
      next.store(items, std::memory_order_relaxed);
      if (!failed.test_and_set()) error = std::current_exception();
    }
  };
#ifdef TUNECORE_STD_THREAD
  std::vector<std::thread> pool;
  for (int w = 1; w < workers; ++w) pool.emplace_back(work, w);
  work(0);
  for (auto& t : pool) t.join();
#else
  // One loop iteration a worker: right also where the runtime grants fewer threads than asked.
#pragma omp parallel for num_threads(workers) schedule(static, 1)
  for (int w = 0; w < workers; ++w) work(w);
#endif
  if (error) std::rethrow_exception(error);
}

}  // namespace tunecore
