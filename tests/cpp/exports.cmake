# OBJECT exports one symbol, EXPECTED. Weak ones count: the linker may take any copy of them, also
# one with instructions that the machine does not have.
execute_process(COMMAND ${NM} -C --defined-only --extern-only ${OBJECT}
  OUTPUT_VARIABLE symbols OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
# A pointer that sanitizers have in every object.
string(REGEX REPLACE "[^\n]* DW\\.ref\\.[^\n]*\n?" "" symbols "${symbols}")
string(STRIP "${symbols}" symbols)
string(REGEX REPLACE "^[0-9a-f]+ [A-Za-z] " "" symbol "${symbols}")
if(NOT symbol STREQUAL EXPECTED)
  message(FATAL_ERROR "${OBJECT} exports\n${symbols}\nand not ${EXPECTED} alone")
endif()
