"""Write a run as one archive to hand in, and check such archives: complete, consistent, not copied."""
