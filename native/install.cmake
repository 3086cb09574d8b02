# What is installed, by component. `development`: the library, its public headers and find_package(headgate). `runtime`:
# headgate-run. `python`, the only one in a wheel: the extension module, and headgate-run among Python's scripts.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

target_sources(headgate_native PUBLIC FILE_SET HEADERS BASE_DIRS include FILES
  include/headgate/engine.h include/headgate/engine_c.h include/headgate/isa.h)
add_library(headgate::headgate ALIAS headgate_native)
set_target_properties(headgate_native PROPERTIES OUTPUT_NAME headgate EXPORT_NAME headgate)

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/headgate)
install(TARGETS headgate_native EXPORT headgate COMPONENT development
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT development
        FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development)
install(EXPORT headgate NAMESPACE headgate:: FILE headgateTargets.cmake DESTINATION ${package} COMPONENT development)
write_basic_package_version_file(headgateConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES headgateConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/headgateConfigVersion.cmake
        DESTINATION ${package} COMPONENT development)

install(TARGETS headgate-run RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT runtime)
if(DEFINED SKBUILD_SCRIPTS_DIR)
  install(TARGETS headgate-run RUNTIME DESTINATION ${SKBUILD_SCRIPTS_DIR} COMPONENT python)
endif()
