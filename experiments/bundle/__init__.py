"""A run as one archive to hand in, and the check of such an archive: whole, genuine, not copied."""
