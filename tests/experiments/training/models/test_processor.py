"""The description of the processor, which a warm process reads before rows start."""

import importlib

import cpuinfo


def test_the_description_of_the_processor_is_read_once():
    importlib.import_module("experiments.training.models.processor")
    assert cpuinfo.get_cpu_info() is cpuinfo.get_cpu_info()
    assert cpuinfo.get_cpu_info.cache_info().misses == 1
