"""What oclbn is timed against: each peer in a process of its own, so that none is ever imported by the library.

child.py is the script that such a process runs; with contract.py and the files named *_peer.py it needs NumPy and the
peer, but neither oclbn nor pyopencl, so that peers may live in another virtual environment. process.py is the parent's
side, registry.py tells what there is, checking.py compares with the reference.
"""
