#include "engine/plan.h"

#include <set>
#include <utility>

#include "engine/attributes.h"
#include "engine/json.h"
#include "engine/operators.h"
#include "engine/safetensors.h"

namespace headgate {
namespace {

constexpr int kVersion = 1;
constexpr std::size_t kMaxOps = 100'000;
constexpr IntRange kExtent{1, 1 << 20};
constexpr std::int64_t kMaxElements = 1 << 28;
constexpr char kPlanKey[] = "headgate.plan";

Safetensors parse_file(std::shared_ptr<const MappedFile> file, const std::string& where) {
  try {
    return parse_safetensors(std::move(file));
  } catch (const SafetensorsError& error) {
    throw PlanError(where + ": " + error.what());
  }
}

Json description(const Safetensors& file, const std::string& where) {
  const auto text = file.metadata.find(kPlanKey);
  if (text == file.metadata.end()) {
    throw PlanError(where + ": a safetensors file, but not a plan: its metadata lacks " + kPlanKey +
                    "; headgate.export writes plans");
  }
  try {
    return parse_json(text->second);
  } catch (const JsonError& error) {
    throw PlanError(where + ": " + kPlanKey + " is not JSON: " + error.what());
  }
}

void check_version(Attributes& root) {
  const std::string accepted = std::to_string(kVersion);
  const auto* version = root.any("version", accepted).as<std::int64_t>();
  if (version == nullptr) root.reject("version", accepted);
  if (*version != kVersion) {
    root.fail("a plan of version " + std::to_string(*version) + ", and this engine reads version " + accepted +
              "; export the model with the headgate that runs it");
  }
}

Shape read_value(const Json& json, std::string where) {
  Attributes value(json, std::move(where));
  const std::vector<int> shape = value.integers("shape", {3, 3, "three integers"}, kExtent);
  if (std::int64_t{shape[0]} * shape[1] * shape[2] > kMaxElements) {
    value.reject("shape", "of at most " + std::to_string(kMaxElements) + " elements");
  }
  value.finish();
  return {shape[0], shape[1], shape[2]};
}

}  // namespace

Plan parse_plan(std::shared_ptr<const MappedFile> mapped, const std::string& where) {
  const Safetensors file = parse_file(std::move(mapped), where);
  const Json json = description(file, where);
  Attributes root(json, where);
  check_version(root);

  Plan plan{};
  plan.file = file.file;
  plan.producer = root.text("producer");
  const Json::Array &values = root.list("values"), &ops = root.list("ops");
  if (ops.size() > kMaxOps) {
    root.fail("ops must be at most " + std::to_string(kMaxOps) + " operators, got " + std::to_string(ops.size()));
  }
  if (values.empty()) root.reject("values", "at least one value");
  for (const Json& value : values) {
    plan.values.push_back(read_value(value, where + ": value " + std::to_string(plan.values.size())));
  }
  const IntRange ids{0, static_cast<int>(values.size()) - 1};
  plan.input = root.integer("input", ids);
  plan.output = root.integer("output", ids);
  if (plan.output == plan.input) root.reject("output", "a value that an operator writes, not the plan's input");
  root.finish();
  OperatorReader reader(file, plan.values, plan.input, where);
  std::set<std::string> names;
  for (const Json& op : ops) {
    plan.ops.push_back(reader.read(op));
    const std::string& name = plan.ops.back().name;
    if (!names.insert(name).second) throw PlanError(where + ": two operators have the name " + name);
  }
  reader.finish();
  return plan;
}

Plan load_plan(const std::string& path) {
  try {
    return parse_plan(MappedFile::open(path), path);
  } catch (const SafetensorsError& error) {
    throw PlanError(path + ": " + error.what());
  }
}

}  // namespace headgate
