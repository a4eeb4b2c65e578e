"""Small training programs, one for each usual loop; they are traced, or measured, as any script is."""
