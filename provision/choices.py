"""Names that a user may choose from. This file imports only types, so that the command line starts fast."""

from typing import Literal

ImageVariant = Literal["current", "as-taught"]
"""The list of package versions from which an image is built (containers/*.txt)."""

IMAGE = "CC-Ubuntu24.04-CUDA"
"""The disk image of nodes by default: Chameleon's with NVIDIA's driver."""
VGPU_IMAGE = "CC-Ubuntu24.04-CUDA-VGPU"
"""Chameleon's image with the driver of virtual GPUs, for flavors such as g1.h100.vgpu.1g.12gb."""

LEASING_SITES = {"chameleon": "provision.sites.bare_metal", "kvm": "provision.sites.kvm"}
"""Names of the sites that lease nodes. Each is also the name of its module in provision/sites/."""
VIRTUAL = "kvm"
"""The site of virtual machines, which boot from volumes and need a security group."""
REGIONS = {"chameleon": "CHI@", "kvm": "KVM@"}
"""Prefixes of region names."""
DEMO, DEMO_PREFIX = "demo", "DEMO@"
"""The demonstration, which leases nothing; see provision/sites/demo.py."""
