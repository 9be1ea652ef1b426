import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys
from latentsb.allocator import keep_freed_memory
assert sys.argv[1] == "no" or keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for _ in range(20):
    block = c.malloc(2**26)  # 64 MiB, more than is kept by default
    ctypes.memset(block, 1, 2**26)
    c.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def faults(keeping: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, keeping], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is glibc on Linux")
def test_pages_of_freed_arrays_are_used_again():
    # 20 blocks of 16,384 pages each: taken afresh each time, or once.
    assert faults("yes") < faults("no") / 4
