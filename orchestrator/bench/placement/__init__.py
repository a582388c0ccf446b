"""`tandem bench placement`: how quickly the router's core decides, without any I/O."""
