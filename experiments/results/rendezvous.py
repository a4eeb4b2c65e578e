"""Environment variables, and files in the folder of a job, by which the nodes of one row connect to each other.

The row's worker writes RENDEZVOUS_FILE with the address, port and key of its socket. The node agents connect to it.
"""

FOLDER_VARIABLE = "TESTBED_NODES"
"""Environment variable with the folder of these files."""
ADDRESS_VARIABLE = "TESTBED_ADDRESS"
"""Environment variable with the address of the first node."""
RENDEZVOUS_VARIABLE = "TESTBED_RENDEZVOUS"
"""Environment variable of a node agent with the contents of RENDEZVOUS_FILE."""
RENDEZVOUS_FILE = "rendezvous"
AGENT_LOG_FILE = "nodes.txt"
"""Output of the node agents."""
EXIT_FILE = "nodes.ended"
"""File with the exit code of the node agents, written when all have ended."""
