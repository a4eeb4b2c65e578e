"""The hardware of the local OpenStack cloud: Chameleon's node types and flavors of KVM@TACC."""

from dataclasses import dataclass

BARE_METAL, KVM = "CHI@UC", "KVM@TACC"
IMAGE = "CC-Ubuntu24.04-CUDA"


@dataclass(frozen=True)
class Machine:
    """A node of the reference data and of Blazar; as there, the GPU's model names memory and interconnect."""

    uid: str
    name: str
    node_type: str
    gpu_model: str = ""
    gpus: int = 0


def _machines() -> list[Machine]:
    a100, v100 = "NVIDIA A100 80GB PCIe", "Tesla V100"
    kinds = [
        *((f"P3-GPU-{n:03d}", "gpu_a100_pcie", a100, 4) for n in range(1, 5)),
        *((f"gigaio-compute-{n:02d}", "compute_gigaio", a100, 1) for n in (2, 3)),
        ("gigaio-compute-06", "compute_gigaio", "", 0),
        ("P2-GPU-001", "gpu_v100", f"{v100}-SXM2-32GB", 4),
        ("P2-GPU-002", "gpu_v100", f"{v100}-PCIE-32GB", 4),
    ]
    return [Machine(f"{n:08x}-0000-4000-8000-{n:012x}", *kind) for n, kind in enumerate(kinds, start=1)]


MACHINES = _machines()
HYPERVISOR = "0000a000-0000-4000-8000-00000000a000"
FLAVORS = {"g1.h100.pci.1": 1, "g1.h100.pci.4": 4}
"""Flavors of KVM@TACC with the GPUs of each."""
HYPERVISOR_CPUS = 160
NODES = [*(machine.uid for machine in MACHINES), HYPERVISOR]


def reference_data(address: str) -> dict[str, object]:
    """Return the files of the reference API by path, with the fields of Chameleon's own."""
    uc, kvm = "sites/uc", "sites/kvm"
    return {
        f"{uc}/uc.json": _site(BARE_METAL, "uc", "baremetal", address),
        f"{uc}/clusters/chameleon/chameleon.json": {"type": "cluster", "uid": "chameleon", "queues": []},
        **{f"{uc}/clusters/chameleon/nodes/{machine.uid}.json": _node(machine) for machine in MACHINES},
        f"{kvm}/kvm.json": _site(KVM, "kvm", "kvm", address),
        f"{kvm}/flavors/m1.large.json": _flavor("m1.large", {"gpu": False}, 0.25),
        **{
            f"{kvm}/flavors/{name}.json": _flavor(name, _passed_through(gpus), 0.5 * gpus)
            for name, gpus in FLAVORS.items()
        },
    }


def _site(name: str, uid: str, site_class: str, address: str) -> dict[str, object]:
    return {"type": "site", "uid": uid, "name": name, "site_class": site_class, "web": f"http://{address}"}


def _passed_through(gpus: int) -> dict[str, object]:
    """Return what the site says of a flavor's GPUs: neither their model nor their memory."""
    return {"gpu": True, "gpu_count": gpus, "gpu_allocation": "pcie_passthrough"}


def _flavor(name: str, gpu: dict[str, object], price: float) -> dict[str, object]:
    return {
        "type": "vm_flavor",
        "uid": name,
        "name": name,
        "vcpus": 48,
        "ram_size": 262_144_000_000,
        "humanized_ram_size": "~244 GiB",
        "gpu": gpu,
        "su_cost_per_hour": price,
    }


def _node(machine: Machine) -> dict[str, object]:
    gpu: dict[str, object] = {"gpu": machine.gpus > 0}
    if machine.gpus:
        gpu |= {"gpu_count": machine.gpus, "gpu_model": machine.gpu_model, "gpu_vendor": "NVIDIA"}
    return {
        "type": "node",
        "uid": machine.uid,
        "node_name": machine.name,
        "node_type": machine.node_type,
        "architecture": {"platform_type": "x86_64", "smp_size": 2, "smt_size": 160},
        "gpu": gpu,
        "infiniband": False,
        "main_memory": {"humanized_ram_size": "512 GiB", "ram_size": 512 * 1024**3},
        "placement": {"node": None, "rack": None},
        "processor": {
            "clock_speed": 2_300_000_000,
            "instruction_set": "x86_64",
            "model": "Intel Xeon",
            "vendor": "Intel",
        },
        "network_adapters": [],
        "storage_devices": [],
        "supported_job_types": {"besteffort": False, "deploy": True, "virtual": "ivt"},
    }
