# The handlers for JAX, by headers of the jaxlib of the Python that builds; nothing of it is linked.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
    "import importlib.util as u; s = u.find_spec('jaxlib'); print(s.submodule_search_locations[0] if s else '')"
  OUTPUT_VARIABLE jaxlib OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
set(jaxlib_headers "${jaxlib}/include")
if(NOT EXISTS "${jaxlib_headers}/xla/ffi/api/ffi.h")
  message(FATAL_ERROR "CHARRNN_JAX=ON takes jaxlib's headers, which ${Python_EXECUTABLE} does not "
    "have: install jaxlib there, or pip install with the environment variable CHARRNN_JAX=ON, which "
    "makes jaxlib a requirement of the build")
endif()
target_sources(_core PRIVATE cpp/bindings/register_jax.cpp)
set_source_files_properties(cpp/bindings/module.cpp PROPERTIES COMPILE_DEFINITIONS CHARRNN_JAX)
set_source_files_properties(cpp/bindings/register_jax.cpp PROPERTIES
  SKIP_UNITY_BUILD_INCLUSION ON
  COMPILE_OPTIONS "-isystem;${jaxlib_headers};-ffile-prefix-map=${jaxlib_headers}/=")
