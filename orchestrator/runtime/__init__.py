"""One cluster on this machine: the store, the Ray Serve pools and the router, as real processes."""
