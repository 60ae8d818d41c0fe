// Runs every TEST, or those whose name contains the first argument. Exit code 1 where one fails.
#include <cstring>

#include "../common/cpu/capability.h"
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
  std::printf("%d tests of variants up to %s, %d failed checks\n", run,
              tunecore::name_of(tunecore::detected_capability()), failures());
  return failures() == 0 && run > 0 ? 0 : 1;
}
