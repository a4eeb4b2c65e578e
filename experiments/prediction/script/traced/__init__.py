"""What runs in the process of a traced script, with PyTorch; nothing else imports it."""
