"""Messages and services: the only thing that crosses processes. Stubs are generated."""
