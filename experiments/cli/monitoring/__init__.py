"""Commands that show what runs now."""
