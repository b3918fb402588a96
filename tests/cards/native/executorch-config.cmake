# ExecuTorch's targets, by the names its own package gives them, made of the libraries of the Python package.
# PACKAGE: the folder of the Python package; TORCH: that of torch; PYTHON: Python's shared library.
file(GLOB runner ${PACKAGE}/extension/llm/runner/_llm_runner.*.so)
file(GLOB runtime ${PACKAGE}/extension/pybindings/_portable_lib.*.so)
file(GLOB custom ${PACKAGE}/extension/llm/custom_ops/libcustom_ops_aot_lib.*)
file(GLOB quantized ${PACKAGE}/kernels/quantized/libquantized_ops_aot_lib.*)

foreach(name executorch extension_llm_runner xnnpack_backend optimized_native_cpu_ops_lib custom_ops quantized_ops_lib)
  add_library(${name} INTERFACE IMPORTED)
endforeach()
target_include_directories(executorch INTERFACE ${PACKAGE}/include)
# Kernels register themselves when their library is loaded, which nothing else in a program asks for.
target_link_options(executorch INTERFACE "LINKER:--no-as-needed" "LINKER:-rpath-link,${TORCH}/lib" "LINKER:-rpath,${TORCH}/lib")
target_link_libraries(extension_llm_runner INTERFACE ${runner})
target_link_libraries(executorch INTERFACE ${runtime} ${PYTHON})
target_link_libraries(custom_ops INTERFACE ${custom})
target_link_libraries(quantized_ops_lib INTERFACE ${quantized})
set(executorch_FOUND TRUE)
