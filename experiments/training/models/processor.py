"""The description of the processor, which is read when this module is imported, and then kept.

DeepSpeed reads it twice when it loads its optimizer for the CPU. Each time, py-cpuinfo starts a Python program.
"""

import functools

import cpuinfo

cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)
cpuinfo.get_cpu_info()
