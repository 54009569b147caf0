"""oneDNN 3 in the layout that it likes best, 16 channels side by side; tensors are brought there before the timing."""

from __future__ import annotations

from oclbn.tools.peers import onednn_peer


class Peer(onednn_peer.Peer):
    """As the plain one, but for the layout."""

    blocked = True
