// A test harness in one page: TEST(name) { CHECK(...); } registers itself; main.cpp runs them all.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace tunecore::tests {

struct Case {
  const char* name;
  void (*body)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Register {
  Register(const char* name, void (*body)()) { cases().push_back({name, body}); }
};

inline void check(bool ok, const char* text, const char* file, int line) {
  if (ok) return;
  ++failures();
  std::printf("%s:%d: failed: %s\n", file, line, text);
}

inline void check_near(double got, double wanted, double tolerance, const char* text, const char* file, int line) {
  if (std::fabs(got - wanted) <= tolerance) return;  // false for NaN
  ++failures();
  std::printf("%s:%d: failed: %s: got %.9g, wanted %.9g within %.3g\n", file, line, text, got, wanted, tolerance);
}

// Numbers for tests: uniform in [-1, 1), the same on every machine.
class Numbers {
 public:
  explicit Numbers(unsigned long long seed) : state_(seed * 2 + 1) {}
  float next() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<float>(static_cast<double>(state_ >> 33) / (1ull << 30) - 1.0);
  }
  std::vector<float> vector(size_t n, float scale = 1.0f) {
    std::vector<float> values(n);
    for (float& v : values) v = next() * scale;
    return values;
  }

 private:
  unsigned long long state_;
};

}  // namespace tunecore::tests

#define TEST(name)                                                                   \
  static void test_##name();                                                         \
  static const ::tunecore::tests::Register register_##name(#name, &test_##name);     \
  static void test_##name()
#define CHECK(condition) ::tunecore::tests::check((condition), #condition, __FILE__, __LINE__)
#define CHECK_NEAR(got, wanted, tolerance) \
  ::tunecore::tests::check_near((got), (wanted), (tolerance), #got " ~ " #wanted, __FILE__, __LINE__)
