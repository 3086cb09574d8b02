#pragma once

#include <nanobind/nanobind.h>

namespace headgate {

void bind_engine(nanobind::module_& m);

}  // namespace headgate
