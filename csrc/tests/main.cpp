// Runs every TEST, or those whose name contains the first argument. Exit code 1 where one fails.
#include <cstring>

#include "check.h"

int main(int argc, char** argv) {
  using namespace tunecore::tests;
  int run = 0;
  for (const Case& test : cases()) {
    if (argc > 1 && !std::strstr(test.name, argv[1])) continue;
    std::printf("%s\n", test.name);
    std::fflush(stdout);
    test.body();
    ++run;
  }
  std::printf("%d tests, %d failed checks\n", run, failures());
  return failures() == 0 && run > 0 ? 0 : 1;
}
