"""How the nodes of one row find each other: variables that the job sets, and files in the job's folder.

The row's worker writes RENDEZVOUS_FILE: address, port and key of its socket, which the node agents connect to.
"""

FOLDER_VARIABLE = "TESTBED_NODES"
"""Variable: folder of these files."""
ADDRESS_VARIABLE = "TESTBED_ADDRESS"
"""Variable: address of the first node."""
RENDEZVOUS_VARIABLE = "TESTBED_RENDEZVOUS"
"""Variable of a node agent: the contents of RENDEZVOUS_FILE."""
RENDEZVOUS_FILE = "rendezvous"
LOG_FILE = "nodes.txt"
"""Output of the node agents."""
EXIT_FILE = "nodes.ended"
"""Exit code of the node agents, once all have ended."""
