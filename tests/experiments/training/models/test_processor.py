"""The description of the processor, which a warm process reads before rows start."""

import cpuinfo

from experiments.training.models import processor


def test_the_description_of_the_processor_is_read_once():
    assert cpuinfo.get_cpu_info is processor.cpuinfo.get_cpu_info
    assert cpuinfo.get_cpu_info() is cpuinfo.get_cpu_info()
    assert cpuinfo.get_cpu_info.cache_info().misses == 1
