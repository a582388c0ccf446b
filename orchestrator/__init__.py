"""Starting, watching and steering a cluster: the spec, the runtime and the command line."""
