"""A temporary Slurm cluster of several nodes on this machine. Real: Slurm, munge, sshd, users. Fakes: the GPUs."""
