"""Tests of the installed package: a wheel in a separate environment, outside the checkout."""
