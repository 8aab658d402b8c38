# The CMake package, the files of pkg-config and the headers. Beside the Python module they lie in the
# package's folder, as in a prefix of its own. Paths between the files are relative: the whole tree
# may be moved.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
if(CHARRNN_PYTHON)
  set(include_dir charrnn_fast/include)
  set(lib_dir charrnn_fast/lib)
else()
  set(include_dir ${CMAKE_INSTALL_INCLUDEDIR})
  set(lib_dir ${CMAKE_INSTALL_LIBDIR})
endif()
set(package_dir ${lib_dir}/cmake/charrnn_fast)
set(pkgconfig_dir ${lib_dir}/pkgconfig)

# A wheel has no symbolic links: that of the shared library would be a copy.
set(namelink "")
if(CHARRNN_PYTHON)
  set(namelink NAMELINK_SKIP)
endif()
foreach(name IN LISTS components)
  install(TARGETS charrnn_fast_${name} EXPORT charrnn_fast
    ARCHIVE DESTINATION ${lib_dir}
    LIBRARY DESTINATION ${lib_dir} ${namelink}
    INCLUDES DESTINATION ${include_dir})
endforeach()
install(DIRECTORY cpp/include/ ${PROJECT_BINARY_DIR}/include/ DESTINATION ${include_dir}
  FILES_MATCHING PATTERN "*.hpp" PATTERN "*.h")

install(EXPORT charrnn_fast NAMESPACE charrnn_fast:: FILE charrnn_fast-targets.cmake
  DESTINATION ${package_dir})
configure_package_config_file(cmake/charrnn_fast-config.cmake.in charrnn_fast-config.cmake
  INSTALL_DESTINATION ${package_dir} NO_SET_AND_CHECK_MACRO)
# Before version 1 the interface of C++ may change with each minor version.
write_basic_package_version_file(charrnn_fast-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/charrnn_fast-config.cmake
  ${PROJECT_BINARY_DIR}/charrnn_fast-config-version.cmake DESTINATION ${package_dir})

# Where the folders are from the files of pkg-config.
set(any_prefix /prefix)
get_filename_component(pkgconfig_path ${pkgconfig_dir} ABSOLUTE BASE_DIR ${any_prefix})
foreach(name include lib)
  get_filename_component(path ${${name}_dir} ABSOLUTE BASE_DIR ${any_prefix})
  file(RELATIVE_PATH ${name}_from_pkgconfig ${pkgconfig_path} ${path})
  string(REGEX REPLACE "/$" "" ${name}_from_pkgconfig "${${name}_from_pkgconfig}")
endforeach()
list(TRANSFORM CMAKE_DL_LIBS PREPEND -l OUTPUT_VARIABLE dl)
foreach(name charrnn_fast charrnn_fast_c)
  configure_file(cmake/${name}.pc.in ${name}.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/${name}.pc DESTINATION ${pkgconfig_dir})
endforeach()
