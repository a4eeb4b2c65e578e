"""Create the environment and the databases of the OpenStack services in the cache."""

from tests.testbed.openstack.box import seeded

seeded()
