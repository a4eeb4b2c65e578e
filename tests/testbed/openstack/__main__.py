"""Create the services' environment and their seeded databases in the cache."""

from tests.testbed.openstack.box import seeded

seeded()
