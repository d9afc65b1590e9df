#include <cstdlib>
#include <stdexcept>

#include "dispatch/cpu.h"
#include "dispatch/table.h"

namespace lanewise {

// The build system lists the targets it compiled: -DLANEWISE_TARGETS="X(generic) X(avx2) …".
#define X(target)            \
  namespace target {         \
  extern const Table kTable; \
  }
LANEWISE_TARGETS
#undef X

namespace {

// Built to be tested, never to be chosen.
bool for_tests_only(const Table& t) { return std::string(t.target) == "wide"; }

std::string names(bool usable_only) {
  std::string list;
  for (const Table* t : tables()) {
    if (for_tests_only(*t) || (usable_only && !cpu_runs(t->target))) continue;
    list += (list.empty() ? "" : ", ") + std::string(t->target);
  }
  return list;
}

const Table& choose() {
  if (const char* wanted = std::getenv("LANEWISE_ISA"); wanted && *wanted) {
    for (const Table* t : tables())
      if (!for_tests_only(*t) && t->target == std::string(wanted)) return table(wanted);
    throw std::runtime_error("lanewise: LANEWISE_ISA must be one of " + names(false) + ", got '" +
                             wanted + "'");
  }
  const Table* best = nullptr;
  for (const Table* t : tables())
    if (!for_tests_only(*t) && cpu_runs(t->target)) best = t;
  return *best;
}

}  // namespace

const std::vector<const Table*>& tables() {
#define X(target) &target::kTable,
  static const std::vector<const Table*> all = {LANEWISE_TARGETS};
#undef X
  return all;
}

const Table& table(const std::string& target) {
  for (const Table* t : tables()) {
    if (target != t->target) continue;
    if (cpu_runs(t->target)) return *t;
    throw std::runtime_error("lanewise: instruction set '" + target +
                             "' does not run on this CPU, which runs " + names(true));
  }
  throw std::runtime_error("lanewise: instruction set '" + target + "' is not built; there is " +
                           names(false));
}

const Table& table() {
  static const Table& chosen = choose();
  return chosen;
}

}  // namespace lanewise
