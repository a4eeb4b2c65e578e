"""Read the description of the CPU when this module is imported, and cache it.

DeepSpeed reads the description twice when it loads its CPU optimizer. Without the cache, py-cpuinfo would start a
Python program each time.
"""

import functools

import cpuinfo

cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)
cpuinfo.get_cpu_info()
