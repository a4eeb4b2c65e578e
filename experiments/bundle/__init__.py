"""Write a run as one archive to hand in, and check that archives are complete, consistent and not copied."""
