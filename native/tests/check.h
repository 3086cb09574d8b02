// A small test harness. A test program is one source that includes this and has some TEST(name) { CHECK(…); }; its main
// runs all of them, or those whose name contains the first argument.
#pragma once

#include <cstdio>
#include <cstring>
#include <exception>
#include <sstream>
#include <string>
#include <vector>

namespace headgate::check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int failures = 0;

struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

inline void fail(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  ++failures;
}

template <class A, class B>
void equal(const A& got, const B& expected, const char* expression, const char* file, int line) {
  if (got == expected) return;
  std::ostringstream what;
  what.precision(17);
  what << expression << ":\n  expected " << expected << "\n  got      " << got;
  fail(file, line, what.str());
}

}  // namespace headgate::check

#define TEST(name)                                                               \
  static void test_##name();                                                     \
  static const headgate::check::Register register_##name(#name, test_##name);    \
  static void test_##name()

#define CHECK(condition) \
  ((condition) ? void() : headgate::check::fail(__FILE__, __LINE__, "not so: " #condition))

#define CHECK_EQ(got, expected) headgate::check::equal(got, expected, #got, __FILE__, __LINE__)

// The message must be exactly this one: error texts are part of what is tested.
#define CHECK_THROWS(expression, Exception, message)                                          \
  try {                                                                                       \
    static_cast<void>(expression);                                                            \
    headgate::check::fail(__FILE__, __LINE__, "nothing thrown; expected " + std::string(message)); \
  } catch (const Exception& error) {                                                          \
    headgate::check::equal(std::string(error.what()), message, "error", __FILE__, __LINE__);  \
  }

int main(int argc, char** argv) {
  int run = 0;
  for (const auto& test : headgate::check::tests()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    ++run;
    try {
      test.run();
    } catch (const std::exception& error) {
      headgate::check::fail(test.name, 0, std::string("threw ") + error.what());
    }
  }
  std::printf("%d tests, %d failures\n", run, headgate::check::failures);
  return run > 0 && headgate::check::failures == 0 ? 0 : 1;
}
