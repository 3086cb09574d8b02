// What plans say of narrow numbers.
#include <string>

#include "tests/wrong_plans.h"

namespace headgate {
namespace {

TEST(eight_bit_convolutions) {
  const Plan plan = parse(convolutions().bytes()), gated = parse(gated_convolutions().bytes());
  CHECK(!plan.ops[0].int8 && plan.ops[2].int8 && plan.ops[2].int8->scale == 0.25F && plan.ops[2].int8->zero == 3);
  CHECK(gated.ops[0].int8 && gated.ops[0].int8->scale == 2.0F && gated.ops[0].int8->zero == 0);
  const std::string point = "operator 2 (conv \"point\"): ";
  check_wrong(convolutions(),
              {{"\"input_scale\": 0.25", "\"input_scale\": 0",
                point + "input_scale must be a positive normal float32, got 0"},
               {"\"input_scale\": 0.25", "\"input_scale\": -1",
                point + "input_scale must be a positive normal float32, got -1"},
               {"\"input_scale\": 0.25", "\"input_scale\": 1e-39",
                point + "input_scale must be a positive normal float32, got 1e-39"},
               {"\"input_scale\": 0.25,", "", point + "input_scale is missing; it must be a number that fits float32"},
               {"\"input_zero\": 3", "\"input_zero\": 256",
                point + "input_zero must be an integer in [0, 255], got 256"},
               {",\n \"input_zero\": 3", "", point + "input_zero is missing; it must be an integer in [0, 255]"}});
  const std::string every = "input_scale is accepted where every pixel decides by itself: granularity activation or "
                            "group, and channel_bound 0";
  check_wrong(gated_convolutions(),
              {{R"("channel_bound": 0.25)", R"("channel_bound": 0.25, "input_scale": 1, "input_zero": 0)",
                "operator 1 (gated_conv \"groups\"): " + every},
               {R"("group_scale": "six")", R"("group_scale": "six", "input_scale": 1, "input_zero": 0)",
                "operator 2 (gated_conv \"channels\"): " + every}});
  PlanFile large{R"({"version": 1, "producer": "test", "input": 0, "output": 1,
"values": [{"shape": [1, 257, 256]}, {"shape": [1, 1, 1]}], "ops": [
{"kind": "conv", "name": "fc", "inputs": [0], "output": 1, "weight": "weight", "bias": "bias", "groups": 1,
 "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "activation": "none", "input_scale": 1, "input_zero": 0}]})"};
  large.floats("weight", {1, 1, 257, 256});
  large.floats("bias", {1});
  CHECK_THROWS(parse(large.bytes()), PlanError,
               "m: operator 0 (conv \"fc\"): input_scale is accepted where an output sums at most 65536 products, got "
               "65792");
}

TEST(bfloat16_convolutions) {
  const std::string down = "operator 1 (conv \"down\"): ";
  const Plan plan = parse(convolutions().bytes());
  CHECK(plan.ops[1].bfloat16 && !plan.ops[1].int8 && plan.ops[1].narrow());
  CHECK(!plan.ops[0].narrow() && !plan.ops[2].bfloat16 && plan.ops[2].narrow());
  check_wrong(convolutions(),
              {{R"("bfloat16")", R"("float16")", down + R"(precision must be one of bfloat16, got "float16")"},
               {R"("bfloat16")", "16", down + "precision must be one of bfloat16, got 16"},
               {R"("bfloat16")", R"("bfloat16", "input_scale": 0.5)",
                down + R"(unknown attribute "input_scale", got 0.5; accepted are name, kind, inputs, output, groups, )"
                "weight, bias, stride, padding, dilation, activation, precision"}});
  const std::string every = "precision is accepted where every pixel decides by itself: granularity activation or "
                            "group, and channel_bound 0";
  check_wrong(gated_convolutions(),
              {{R"("channel_bound": 0.25)", R"("channel_bound": 0.25, "precision": "bfloat16")",
                "operator 1 (gated_conv \"groups\"): " + every},
               {R"("group_scale": "six")", R"("group_scale": "six", "precision": "bfloat16")",
                "operator 2 (gated_conv \"channels\"): " + every}});
}

}  // namespace
}  // namespace headgate
