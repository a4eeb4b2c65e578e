"""Two or more examples of each command, as its help shows them."""

EXAMPLES = {
    "list": ("testbed list", "testbed list single_gpu_blip2 --card h100_94gb"),
    "run": (
        "testbed run single_gpu_blip2 --row baseline --row reduced-batch",
        "testbed run --group single --card a100_80gb --size full",
        "testbed run slurm_hf_trainer --site slurm --profile roihu --account P",
    ),
    "reproduce": (
        "testbed reproduce --node-type gpu_a100_pcie --dry-run",
        "testbed reproduce single_gpu_blip2 --yes --max-hours 3",
    ),
    "logs": (
        "testbed logs baseline",
        "testbed logs xxl results/single_gpu_blip2-a100_80gb-tiny-verdict -f",
    ),
    "evaluate": ("testbed evaluate results/latest", "testbed evaluate results --json"),
    "report": (
        "testbed report results/latest",
        "testbed report results/single_gpu_blip2-a100_80gb-tiny-verdict",
    ),
    "compare": (
        "testbed compare results/last-year results/latest",
        "testbed compare results/last-year results/latest --json",
    ),
    "schema": ("testbed schema", "testbed schema | jq .result"),
    "predict": (
        "testbed predict single_gpu_blip2/xxl-sgd --card a100_80gb",
        "testbed predict --model open-llama-3b --card all --batch 1,8",
        "testbed predict --card all -- python train.py --batch 4",
    ),
    "fit": (
        "testbed fit single_gpu_blip2/xxl --card a100_80gb",
        "testbed fit --model open-llama-7b --batch 4 --card a100_80gb",
    ),
    "cards": ("testbed cards", "testbed cards --json"),
    "models": ("testbed models", "testbed models --json"),
    "slots": (
        "testbed slots --for single --calendar 3",
        "testbed slots --node-type gpu_a100_pcie --hours 2h30m --within 9-17",
    ),
    "lease": (
        "testbed lease --node-type gpu_a100_pcie --hours 3 --dry-run",
        "testbed lease --gpu H100 --watch --yes --run 'ssh $TESTBED_NODES nvidia-smi'",
    ),
    "configure": ("testbed configure", "testbed configure llm_single_ada --check"),
    "status": ("testbed status", "testbed status llm_single_ada --json"),
    "top": ("testbed top", "testbed top --profile lumi --once"),
    "notebook": ("testbed notebook", "testbed notebook --narrative single_gpu_blip2"),
    "extend": ("testbed extend --by 1h", "testbed extend llm_single_ada --by 2h30m --dry-run"),
    "release": ("testbed release", "testbed release llm_single_ada --yes"),
    "doctor": ("testbed doctor", "testbed doctor --site kvm"),
    "orphans": ("testbed orphans", "testbed orphans --clean --dry-run"),
}
