"""The installed package: a wheel in an environment of its own, outside the checkout."""
