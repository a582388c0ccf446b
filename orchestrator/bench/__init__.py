"""`tandem bench`: what Tandem costs and gains on this machine, measured beside its peers."""
