"""The `tandem` command line. Modules import what is slow inside the command that needs it."""
