# The CUDA kernels: the library charrnn_fast_cuda, and for Python the module _cuda. CHARRNN_CUDA:
#
#   OFF   none
#   AUTO  for the cards of this machine, if there are some, and nvcc, and the two work together;
#         else none
#   ON    by nvcc, for all architectures below; without it, an error
#   PIP   the same, with the nvcc of the Python that builds: pip's package cuda-toolkit
#
# CMAKE_CUDA_ARCHITECTURES, where given, replaces the architectures. Sets charrnn_cuda to whether they
# are built.
set(charrnn_cuda FALSE)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND NOT CMAKE_CUDA_HOST_COMPILER AND NOT DEFINED ENV{CUDAHOSTCXX})
  set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
endif()

# A program that runs a kernel on each card.
if(NOT DEFINED CHARRNN_CUDA_TRIAL)
  set(CHARRNN_CUDA_TRIAL [=[
#include <cstdio>
__global__ void answer(int* to) { *to = 42; }
int main() {
  int cards = 0, given = 0;
  cudaError_t status = cudaGetDeviceCount(&cards);
  for (int i = 0; i < cards && status == cudaSuccess; ++i) {
    int* there = nullptr;
    cudaSetDevice(i);
    cudaMalloc(&there, sizeof(int));
    answer<<<1, 1>>>(there);
    status = cudaMemcpy(&given, there, sizeof(int), cudaMemcpyDeviceToHost);
  }
  if (status != cudaSuccess) std::printf("%s", cudaGetErrorString(status));
  return status != cudaSuccess || given != 42;
}]=])
endif()
# Sets `why_not`, or, where all is well, CMAKE_CUDA_ARCHITECTURES for the cards at hand.
macro(charrnn_find_cards)
  set(why_not "")
  find_program(CHARRNN_NVIDIA_SMI nvidia-smi)
  mark_as_advanced(CHARRNN_NVIDIA_SMI)
  set(cards "")
  if(CHARRNN_NVIDIA_SMI AND NOT CMAKE_CROSSCOMPILING)
    execute_process(COMMAND ${CHARRNN_NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE cards ERROR_QUIET)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]+" cards "${cards}")
    list(REMOVE_DUPLICATES cards)
  endif()
  if(NOT cards)
    set(why_not "nvidia-smi finds no card")
  else()
    check_language(CUDA)
    if(NOT CMAKE_CUDA_COMPILER)
      set(why_not "there is a card, but no nvcc that works, in PATH or named by CUDACXX")
    endif()
  endif()
  if(NOT why_not)
    set(architectures)
    set(flags)
    foreach(card IN LISTS cards)
      string(REPLACE "." "" number ${card})
      if(number EQUAL 90)
        string(APPEND number a)
      endif()
      list(APPEND architectures ${number}-real)
      list(APPEND flags -gencode=arch=compute_${number},code=sm_${number})
    endforeach()
    set(trial ${PROJECT_BINARY_DIR}/cuda_trial)
    file(WRITE ${trial}.cu "${CHARRNN_CUDA_TRIAL}\n")
    if(CMAKE_CUDA_HOST_COMPILER)
      list(APPEND flags -ccbin ${CMAKE_CUDA_HOST_COMPILER})
    endif()
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} -std=c++17 ${flags} ${trial}.cu -o ${trial}
      RESULT_VARIABLE failed OUTPUT_VARIABLE said ERROR_VARIABLE said)
    if(failed)
      set(why_not "nvcc does not compile for the card: ${said}")
    else()
      execute_process(COMMAND ${trial} RESULT_VARIABLE failed OUTPUT_VARIABLE said)
      if(failed)
        set(why_not "a program by nvcc does not run on the card: ${said}")
      endif()
    endif()
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES ${architectures})
    endif()
  endif()
endmacro()

include(CheckLanguage)
if(CHARRNN_CUDA STREQUAL "AUTO")
  charrnn_find_cards()
  if(why_not)
    message(STATUS "CHARRNN_CUDA=AUTO: for the CPU alone: ${why_not}")
    return()
  endif()
elseif(CHARRNN_CUDA STREQUAL "PIP")
  if(NOT Python_EXECUTABLE)
    find_package(Python 3.11 REQUIRED COMPONENTS Interpreter)
  endif()
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
      "import importlib.util as u, pathlib as p; s = u.find_spec('nvidia'); print(*[f for d in (s.submodule_search_locations if s else []) for f in p.Path(d).glob('cu*/bin/nvcc')][:1])"
    OUTPUT_VARIABLE nvcc OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  if(NOT nvcc)
    message(FATAL_ERROR "CHARRNN_CUDA=PIP takes nvcc of ${Python_EXECUTABLE}, which has none: install "
      "'cuda-toolkit[nvcc,cudart,crt,nvvm,cccl,culibos]==13.0.*' there, or pip install with the "
      "environment variable CHARRNN_CUDA=PIP, which makes it a requirement of the build")
  endif()
  get_filename_component(toolkit ${nvcc} DIRECTORY)
  get_filename_component(toolkit ${toolkit} DIRECTORY)
  set(CMAKE_CUDA_COMPILER ${nvcc})
  # nvcc itself looks for its libraries in lib64, which pip's packages do not have. What is in
  # LIBRARY_PATH CMake leaves out of link directories, thus the option below.
  set(ENV{LIBRARY_PATH} "${toolkit}/lib:$ENV{LIBRARY_PATH}")
else()
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "CHARRNN_CUDA=ON takes nvcc of CUDA 12.1 or later, which is not in PATH and not "
      "named by CUDACXX: install NVIDIA's CUDA toolkit, or take CHARRNN_CUDA=PIP, which has pip install it")
  endif()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  # Those of these that this nvcc knows, and code that the driver compiles for any other card.
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code
    OUTPUT_VARIABLE known COMMAND_ERROR_IS_FATAL ANY)
  set(CMAKE_CUDA_ARCHITECTURES)
  foreach(number IN ITEMS 80 86 89 90a 100 120)
    string(REGEX REPLACE "[a-z]" "" plain ${number})
    if(known MATCHES "sm_${plain}([^0-9]|$)")
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${number}-real)
    endif()
  endforeach()
  list(APPEND CMAKE_CUDA_ARCHITECTURES 80-virtual)
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.1)
  message(FATAL_ERROR "CHARRNN_CUDA takes nvcc of CUDA 12.1 or later, got ${CMAKE_CUDA_COMPILER}, of CUDA "
    "${CMAKE_CUDA_COMPILER_VERSION}")
endif()
string(REPLACE ";" " " architectures "${CMAKE_CUDA_ARCHITECTURES}")
message(STATUS "CUDA kernels for ${architectures}, by ${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION}")
set(charrnn_cuda TRUE)

# A shared library: programs that link it need no part of CUDA, for the runtime is inside, unseen.
add_library(charrnn_fast_cuda SHARED cuda/device.cu cuda/float32.cu cuda/float64.cu)
target_include_directories(charrnn_fast_cuda
  PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/cpp/include> PRIVATE cuda cpp/src)
target_compile_features(charrnn_fast_cuda PUBLIC cxx_std_17)
# -fmad=false: as on the CPU, a product and a sum become one rounding only where the code says fma.
# --threads 0: the architectures at once.
target_compile_options(charrnn_fast_cuda PRIVATE
  -fmad=false --threads 0 -Xcompiler=-ffile-prefix-map=${PROJECT_SOURCE_DIR}/=)
# By their numbers; what "all" stands for nvcc tells the source itself.
if(CMAKE_CUDA_ARCHITECTURES STREQUAL "native")
  string(REPLACE ";" " " architectures "${CMAKE_CUDA_ARCHITECTURES_NATIVE}")
endif()
if(architectures MATCHES "^[0-9]")
  target_compile_definitions(charrnn_fast_cuda PRIVATE CHARRNN_CUDA_ARCHITECTURES="${architectures}")
endif()
set_target_properties(charrnn_fast_cuda PROPERTIES
  CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static
  CUDA_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
  SOVERSION ${cuda_version})
target_link_options(charrnn_fast_cuda PRIVATE
  -Wl,--no-undefined -Wl,--exclude-libs,ALL -Wl,-z,relro,-z,now)

if(CHARRNN_CUDA STREQUAL "PIP")
  target_link_options(charrnn_fast_cuda PRIVATE -L${toolkit}/lib)
endif()

if(CHARRNN_PYTHON)
  Python_add_library(_cuda MODULE WITH_SOABI cuda/module.cpp)
  target_link_libraries(_cuda PRIVATE charrnn_fast_cuda charrnn_fast_core charrnn_flags)
  foreach(folder IN LISTS Python_INCLUDE_DIRS)
    target_compile_options(_cuda PRIVATE -ffile-prefix-map=${folder}/=)
  endforeach()
  set_target_properties(_cuda PROPERTIES INSTALL_RPATH "$ORIGIN/lib")
  install(TARGETS _cuda DESTINATION charrnn_fast)
endif()
