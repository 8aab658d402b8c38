"""The compiled module as a file: its protections, and no information about the machine that built
it."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path

import pytest

from charrnn_fast import _core

BINARY = Path(_core.__file__)
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files"),
    pytest.mark.unsanitized("looks at the module as it is installed"),
]

PT_DYNAMIC, PT_GNU_STACK, PT_GNU_RELRO = 2, 0x6474E551, 0x6474E552
DT_NULL, DT_STRTAB, DT_STRSZ, DT_RPATH, DT_RUNPATH = 0, 5, 10, 15, 29
DT_FLAGS, DT_FLAGS_1 = 30, 0x6FFFFFFB
DF_BIND_NOW, DF_1_NOW = 8, 1
EXECUTABLE = 1


class Elf:
    """The program headers, the dynamic section and the dynamic strings of a 64-bit file."""

    def __init__(self, path: Path) -> None:
        self.data = data = path.read_bytes()
        assert data[:6] == b"\x7fELF\x02\x01", "not a 64-bit little-endian ELF file"
        (first,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        # type, flags, offset, address, physical address, size in the file, in memory, alignment
        self.segments = [
            struct.unpack_from("<IIQQQQQQ", data, first + i * size) for i in range(count)
        ]
        (dynamic,) = (s for s in self.segments if s[0] == PT_DYNAMIC)
        self.dynamic: dict[int, int] = {}
        for tag, value in struct.iter_unpack("<QQ", data[dynamic[2] : dynamic[2] + dynamic[5]]):
            if tag == DT_NULL:
                break
            self.dynamic[tag] = value
        begin = self._offset(self.dynamic[DT_STRTAB])
        self.strings = set(data[begin : begin + self.dynamic[DT_STRSZ]].decode().split("\0"))

    def _offset(self, address: int) -> int:
        for _, _, offset, start, _, size, _, _ in self.segments:
            if start <= address < start + size:
                return int(offset + address - start)
        raise AssertionError(f"no segment holds {address:#x}")


@pytest.fixture(scope="module")
def elf() -> Elf:
    return Elf(BINARY)


def test_functions_of_other_libraries_are_bound_at_loading_and_read_only_then(elf: Elf) -> None:
    flags, more = elf.dynamic.get(DT_FLAGS, 0), elf.dynamic.get(DT_FLAGS_1, 0)
    assert flags & DF_BIND_NOW or more & DF_1_NOW
    assert any(s[0] == PT_GNU_RELRO for s in elf.segments)


def test_the_stack_is_guarded_and_not_executable(elf: Elf) -> None:
    assert "__stack_chk_fail" in elf.strings
    (stack,) = (s for s in elf.segments if s[0] == PT_GNU_STACK)
    assert not stack[1] & EXECUTABLE


def test_copies_are_checked(elf: Elf) -> None:
    """By the C library's functions that know the size of the array that they write to."""
    assert any(re.fullmatch(r"__\w+_chk", name) for name in elf.strings - {"__stack_chk_fail"})


def test_no_path_of_the_machine_that_built_it(elf: Elf) -> None:
    assert DT_RPATH not in elf.dynamic and DT_RUNPATH not in elf.dynamic
    sources = rb"(?<![\w./+-])(?:/[\w.+-]+){2,}\.(?:[ch](?:pp|h|c|xx)?|o|a)\b"
    assert re.findall(sources, elf.data) == []
    for folder in {str(Path(__file__).parents[1]), sys.prefix, sys.base_prefix} - {"/", "/usr"}:
        assert folder.encode() not in elf.data
