// The compiler of this build, by name and version.
#pragma once

namespace charrnn_fast {

#if defined(__clang__)
inline constexpr const char* compiler = "Clang " __clang_version__;
#elif defined(__GNUC__)
inline constexpr const char* compiler = "GCC " __VERSION__;
#else
inline constexpr const char* compiler = "unknown";
#endif

}  // namespace charrnn_fast
