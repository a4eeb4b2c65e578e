"""How the nodes of one row find each other: variables that Slurm's job sets, and files in the row's folder."""

FOLDER = "TESTBED_NODES"
ADDRESS = "TESTBED_ADDRESS"
MEETING = "TESTBED_MEETING"
MEETING_FILE = "meeting"
SAID_FILE = "nodes.txt"
LEFT_FILE = "nodes.ended"
