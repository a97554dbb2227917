"""How fast a network runs on this machine, against its peers, and its fastest equivalent."""
