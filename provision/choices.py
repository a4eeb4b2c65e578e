"""Names that a user may choose from. This file imports almost nothing, so that the command line starts fast."""

from typing import Literal

ImageVariant = Literal["current", "as-taught"]
"""The library versions in a container image; each variant has a list of versions in containers/."""

DISK_IMAGE = "CC-Ubuntu24.04-CUDA"
"""The default disk image of nodes: Chameleon's image with NVIDIA's driver."""
VGPU_DISK_IMAGE = "CC-Ubuntu24.04-CUDA-VGPU"
"""Chameleon's disk image with the driver of virtual GPUs, for flavors such as g1.h100.vgpu.1g.12gb."""

LEASING_SITES = {"chameleon": "provision.sites.bare_metal", "kvm": "provision.sites.kvm"}
"""The module of each site that leases nodes, by the name of the site."""
VM_SITE = "kvm"
"""The site of virtual machines, which boot from volumes and need a security group."""
REGION_PREFIXES = {"chameleon": "CHI@", "kvm": "KVM@"}
"""The prefix of region names, by the name of the site."""
DEMO, DEMO_PREFIX = "demo", "DEMO@"
"""The name of the simulated site, which leases nothing, and the prefix of its region; see provision/sites/demo.py."""
