"""A trained network as a file for other runtimes: written, opened there, compared with the network, then kept."""
