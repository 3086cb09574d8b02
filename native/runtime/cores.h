// What a container's quota of CPU time comes to in cores.
#pragma once

#include <optional>
#include <string>

namespace headgate {

// Rounded up; nothing where the folder, that of control groups of version 2 or 1, names no quota.
std::optional<int> quota_in_cores(const std::string& folder);

}  // namespace headgate
